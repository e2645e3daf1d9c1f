"""OpenSlide's raw path: exact compositing, levels that are levels, and recovery from its latched errors."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.sources.tiff.test_source import read_openslide
from tests.support.images import make_image, write_pyramid
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import openslide as module
from tilestream.sources.base import SourceOptions
from tilestream.sources.openslide import OpenSlideSource, rgb_from_argb
from tilestream.sources.resolution import parse_number
from tilestream.testing.sources import Image, SourceSuite


class OpenSlideSuite(SourceSuite):
    options = SourceOptions(backend="openslide")
    name: str
    shape: tuple[int, int]

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, slides: Path) -> Path:
        return slides / cls.name

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return read_openslide(path, 0, Region(0, 0, *cls.shape))


class TestAperio(OpenSlideSuite):
    name, shape = "CMU-1-Small-Region.svs", (2967, 2220)


class TestDicom(OpenSlideSuite):
    name, shape = "gcp_jpeg.dcm", (715, 957)


class TestSmallDicom(OpenSlideSuite):
    name, shape = "boxes_0.dcm", (16, 16)


def test_premultiplied_words_go_on_white_exactly() -> None:
    alpha = np.repeat(np.arange(256, dtype=np.uint32), 256)
    colour = np.minimum(np.tile(np.arange(256, dtype=np.uint32), 256), alpha)
    argb = ((alpha << 24) | (colour << 16) | ((alpha - colour) << 8) | alpha).reshape(256, 256)
    rgb = rgb_from_argb(argb)
    expected = np.stack([colour + 255 - alpha, 255 - colour, np.full_like(alpha, 255)], axis=-1).reshape(256, 256, 3)
    np.testing.assert_array_equal(rgb, expected)


def test_raw_path_and_pil_path_agree_on_opaque_pixels(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(100, 200, 300, 250)
    with OpenSlideSource(str(slides / "CMU-1-Small-Region.svs"), SourceOptions()) as source:
        expected = source.read_region(0, region)
        monkeypatch.setattr(module, "_RAW_READ", None)
        np.testing.assert_array_equal(source.read_region(0, region), expected)


def test_masks_are_not_levels(slides: Path) -> None:
    with OpenSlideSource(str(slides / "cogeo.tif"), SourceOptions()) as source:
        assert [level.size.width for level in source.info.levels] == [1024, 512, 256, 128, 64, 32, 16]


def test_an_error_concerns_its_region_only(slides: Path) -> None:
    bad, good = Region(720, 1200, 240, 240), Region(0, 0, 240, 240)
    with OpenSlideSource(str(slides / "badtile.svs"), SourceOptions()) as source:
        expected = source.read_region(0, good)
        for _ in range(2):
            with pytest.raises(ReadError, match=r"badtile\.svs: level 0, 240 x 240 px at \(720, 1200\): "):
                source.read_region(0, bad)
            np.testing.assert_array_equal(source.read_region(0, good), expected)


def test_threads_beside_a_damaged_region_read_on(slides: Path) -> None:
    bad, good = Region(720, 1200, 240, 240), Region(480, 960, 240, 240)
    with OpenSlideSource(str(slides / "badtile.svs"), SourceOptions()) as source:
        expected = source.read_region(0, good)

        def read(k: int) -> Image | None:
            try:
                return source.read_region(0, bad if k % 3 == 0 else good)
            except ReadError:
                return None

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(read, range(60)))
    for k, pixels in enumerate(results):
        if k % 3 == 0:
            assert pixels is None
        else:
            np.testing.assert_array_equal(pixels, expected)


def test_opens_and_then_fails_to_read(slides: Path) -> None:
    with (
        OpenSlideSource(str(slides / "unreadable.svs"), SourceOptions()) as source,
        pytest.raises(ReadError, match=r"unreadable\.svs: level 0"),
    ):
        source.read_region(0, Region(0, 0, 16, 16))


@pytest.mark.parametrize("name", ["broken.svs", "unopenable.tiff"])
def test_what_openslide_cannot_open_is_refused(slides: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: OpenSlide cannot open it: .+"):
        OpenSlideSource(str(slides / name), SourceOptions())


def test_choices_that_openslide_does_not_offer_are_refused(slides: Path) -> None:
    with pytest.raises(InputError, match=r"take source\.z, source\.channels out of the config"):
        OpenSlideSource(str(slides / "CMU-1-Small-Region.svs"), SourceOptions(z=0, channels=(0,)))


def test_resolution_is_openslides_or_the_configs(slides: Path) -> None:
    with OpenSlideSource(str(slides / "gcp_jpeg.dcm"), SourceOptions()) as source:
        assert source.info.mpp == pytest.approx(16.783)
        assert source.info.mpp_source == "OpenSlide's mpp properties"
    with OpenSlideSource(str(slides / "boxes.tiff"), SourceOptions()) as source:
        assert source.info.mpp is None
        assert "placeholder" in source.info.warnings[0]
    with OpenSlideSource(str(slides / "boxes.tiff"), SourceOptions(mpp=0.5)) as source:
        assert (source.info.mpp, source.info.mpp_source) == (0.5, "config")


@pytest.mark.parametrize(("text", "value", "warnings"), [("0.25", 0.25, 0), ("0,25", 0.25, 1), ("none", math.nan, 0)])
def test_decimal_commas_are_read_as_points(text: str, value: float, warnings: int) -> None:
    number, words = parse_number(text)
    assert number == pytest.approx(value, nan_ok=True)
    assert len(words) == warnings


def test_unequal_resolutions_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
    with pytest.raises(InputError, match="pixels are not square"):
        OpenSlideSource(str(path), SourceOptions())


def test_reading_after_close_is_an_error(slides: Path) -> None:
    source = OpenSlideSource(str(slides / "boxes_0.dcm"), SourceOptions())
    source.close()
    with pytest.raises(ReadError, match="is closed"):
        source.read_region(0, Region(0, 0, 4, 4))
