"""Plain pictures: Pillow and imagecodecs are the judges."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support.images import make_image
from tests.support.profiles import odd_profile
from tests.support.runs import embed
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source, picture
from tilestream.sources.base import SourceOptions
from tilestream.testing.sources import Image, SourceSuite

IMAGE = make_image(203, 311)
ALL = Region(0, 0, 203, 311)


class PictureSuite(SourceSuite):
    name = ""
    options_of_pillow: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("picture") / cls.name
        Pillow.fromarray(IMAGE).save(path, **cls.options_of_pillow)
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, path: Path) -> Image:
        return np.asarray(Pillow.open(path).convert("RGB"))


class TestPng(PictureSuite):
    name = "a.png"


class TestJpeg(PictureSuite):
    name = "a.JPG"
    options_of_pillow = {"quality": 90, "progressive": True}  # noqa: RUF012


class TestJpeg2000(PictureSuite):
    name = "a.jp2"


def pictures() -> dict[str, Pillow.Image]:
    rgb = Pillow.fromarray(IMAGE)
    alpha = Pillow.fromarray((np.add.outer(np.arange(203), np.arange(311)) % 256).astype(np.uint8))
    rgba, la = rgb.copy(), rgb.convert("L")
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    return {"grey": rgb.convert("L"), "bilevel": rgb.convert("1"), "palette": rgb.quantize(64), "rgba": rgba, "la": la}


@pytest.mark.parametrize("kind", ["grey", "bilevel", "palette", "rgba", "la"])
@pytest.mark.parametrize("suffix", ["png", "jp2"])
def test_every_mode_is_what_pillow_puts_on_white(tmp_path: Path, kind: str, suffix: str) -> None:
    made = pictures()[kind]
    if suffix == "jp2" and made.mode not in ("L", "RGBA", "LA"):
        pytest.skip("JPEG 2000 has no such mode")
    made.save(tmp_path / f"a.{suffix}")
    white = Pillow.new("RGBA", made.size, "white")
    white.alpha_composite(Pillow.open(tmp_path / f"a.{suffix}").convert("RGBA"))
    with open_source(str(tmp_path / f"a.{suffix}"), SourceOptions()) as source:
        assert source.info.backend == "picture"
        found = source.read_region(0, ALL).astype(int)
        assert np.abs(found - np.asarray(white.convert("RGB"))).max() <= 1


def test_a_transparent_colour_is_alpha(tmp_path: Path) -> None:
    made = pictures()["palette"]
    made.save(tmp_path / "a.png", transparency=5)
    with open_source(str(tmp_path / "a.png"), SourceOptions()) as source:
        found = source.read_region(0, ALL)
    with open_source(str(tmp_path / "a.png"), SourceOptions(channels=(2, 1, 0))) as source:
        np.testing.assert_array_equal(source.read_region(0, ALL), found[..., ::-1])
    hidden = np.asarray(made) == 5
    assert (found[hidden] == 255).all()
    np.testing.assert_array_equal(found[~hidden], np.asarray(made.convert("RGB"))[~hidden])


def test_channels_that_are_chosen_lie_under_alpha(tmp_path: Path) -> None:
    samples = np.random.default_rng(3).integers(0, 256, (60, 70, 4), np.uint8)
    samples[:, :20, 3] = 0
    Pillow.fromarray(samples).save(tmp_path / "a.png")
    white = Pillow.new("RGBA", (70, 60), "white")
    white.alpha_composite(Pillow.fromarray(samples))
    for channels in ((2, 1, 0), (1,)):
        with open_source(str(tmp_path / "a.png"), SourceOptions(channels=channels)) as source:
            found = source.read_region(0, Region(0, 0, 60, 70)).astype(int)
        assert np.abs(found - np.asarray(white)[..., list(channels)]).max() <= 1
    with open_source(str(tmp_path / "a.png"), SourceOptions(channels=(3,))) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 60, 70))[..., 0], samples[..., 3])


def test_sixteen_bits_need_a_window(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (60, 70)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    with pytest.raises(InputError, match=r"samples are uint16.*window"):
        open_source(str(tmp_path / "a.png"), SourceOptions())
    with open_source(str(tmp_path / "a.png"), SourceOptions(window=(0, 4095))) as source:
        expected = np.rint(np.asarray(Pillow.open(tmp_path / "a.png")).astype(float) * 255 / 4095)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 60, 70))[..., 0], expected)


@pytest.mark.parametrize(("dpi", "mpp"), [((72, 72), None), ((300, 300), None), ((96, 96), None), ((50800, 50800), 0.5), (None, None)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_density_for_printing_is_no_resolution(tmp_path: Path, name: str, dpi: Any, mpp: float | None) -> None:
    Pillow.fromarray(IMAGE).save(tmp_path / name, **({"dpi": dpi} if dpi else {}))
    with open_source(str(tmp_path / name), SourceOptions()) as source:
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        assert [("placeholder" in words) for words in source.info.warnings] == ([True] if dpi and mpp is None else [])
    with open_source(str(tmp_path / name), SourceOptions(mpp=0.25)) as source:
        assert (source.info.mpp, source.info.mpp_source) == (0.25, "config")


def test_orientation_is_said_and_profiles_are_used(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(IMAGE).save(tmp_path / "a.jpg", exif=exif, icc_profile=odd_profile())
    with open_source(str(tmp_path / "a.jpg"), SourceOptions(icc=True)) as source:
        assert "Orientation is 6" in source.info.warnings[0]
        assert source.info.properties["icc"] == "applied"
    with open_source(str(tmp_path / "a.jpg"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, ALL), imagecodecs.jpeg8_decode((tmp_path / "a.jpg").read_bytes()))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_picture_too_large_to_be_one_piece_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(picture.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"30000 x 30000 px is one piece of 2575 MiB.*the limit is 256 MiB.*vips tiffsave"):
        open_source(str(tmp_path / "bomb.png"), SourceOptions())


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_cut_pictures_are_refused_or_fail_when_read(tmp_path: Path, name: str) -> None:
    Pillow.fromarray(IMAGE).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (13, 40, 150, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises((InputError, ReadError)), open_source(str(tmp_path / name), SourceOptions()) as source:
            source.read_region(0, ALL)


def test_four_inks_are_refused(tmp_path: Path) -> None:
    Pillow.fromarray(IMAGE).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="JPEG with 4 colours; grey and RGB are read"):
        open_source(str(tmp_path / "a.jpg"), SourceOptions())


def test_pictures_are_embedded(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "jp2"):
        Pillow.fromarray(IMAGE).save(tmp_path / f"a{suffix}.{suffix}")
    summary = embed([str(tmp_path / f"a{suffix}.{suffix}") for suffix in ("png", "jpg", "jp2")], tmp_path / "out", tiles={"size": 64})
    assert [(slide.status, slide.tiles) for slide in summary.slides] == [("done", 20)] * 3


def test_a_picture_under_another_name_is_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(IMAGE).save(buffer, "JPEG")
    (tmp_path / "a.mrxs").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"MIRAX; the file is an overview.*Copy that folder \(a/\) as well"):
        open_source(str(tmp_path / "a.mrxs"), SourceOptions())


@pytest.mark.parametrize(("suffix", "words"), [("png", "begins as PNG"), ("jpg", "begins as JPEG"), ("jp2", "begins as JPEG 2000")])
def test_a_picture_that_is_called_a_slide_is_told(tmp_path: Path, suffix: str, words: str) -> None:
    Pillow.fromarray(make_image(64, 80, 1)).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.svs")
    with pytest.raises(InputError, match=rf"a\.svs: {words}\. If it is the picture that is meant, call it \.{suffix}"):
        open_source(str(tmp_path / "a.svs"), SourceOptions())
