"""Axes, samples and values that a file leaves open: asked for, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tests.support.tiff_tags import patch_tag
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import Region
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource


def test_an_unexplained_second_sample_is_asked_about(slides: Path) -> None:
    with pytest.raises(InputError, match=r"the second not said to be alpha\) is 2 long\. .*source: \{channels: \[0\]\}"):
        TiffSource(str(slides / "small_la.tiff"), SourceOptions())


@pytest.mark.parametrize(
    ("samples", "extra"), [(2, ["unspecified"]), (4, ["unspecified"]), (2, ["assocalpha"]), (2, ["unassalpha"]), (4, ["unassalpha"])]
)
def test_alpha_is_what_the_file_says_is_alpha(tmp_path: Path, samples: int, extra: list[str]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, samples)).astype(np.uint8)
    pixels[..., :-1] = np.minimum(pixels[..., :-1], pixels[..., -1:])
    photometric = "rgb" if samples == 4 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, tile=(64, 64), photometric=photometric, planarconfig="contig", extrasamples=extra, metadata=None
    )
    if extra == ["unspecified"]:
        with pytest.raises(InputError, match=r"not said to be alpha"):
            TiffSource(str(tmp_path / "a.tif"), SourceOptions())
        with TiffSource(str(tmp_path / "a.tif"), SourceOptions(channels=(0,))) as source:
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 64, 64))[..., 0], pixels[..., 0])
        return
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions()) as source:
        alpha, colour = pixels[..., -1:].astype(float), pixels[..., :-1].astype(float)
        exact = colour + 255 - alpha if extra == ["assocalpha"] else colour * alpha / 255 + 255 - alpha
        assert np.abs(source.read_region(0, Region(0, 0, 64, 64)) - np.broadcast_to(exact, (64, 64, 3))).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize(
    "extra", [["assocalpha"], ["unassalpha"], ["unspecified", "unassalpha"], ["unspecified", "assocalpha", "unspecified"]]
)
@pytest.mark.parametrize("chosen", [(0, 1, 2), (2, 0, 1), (1,), "alpha"])
def test_channels_that_are_chosen_lie_under_the_alpha_of_the_file(
    tmp_path: Path, dtype: Any, tile: Any, extra: list[str], chosen: Any
) -> None:
    most, at = np.iinfo(dtype).max, 3 + next(k for k, name in enumerate(extra) if name != "unspecified")
    pixels = np.random.default_rng(2).integers(0, most, (64, 96, 3 + len(extra)), endpoint=True).astype(dtype)
    pixels[:, :16, at], pixels[:, 16:32, at] = 0, most
    if "assocalpha" in extra:
        pixels = np.where(np.arange(pixels.shape[-1]) == at, pixels, np.minimum(pixels, pixels[..., at : at + 1]))
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=tile, photometric="rgb", planarconfig="contig", extrasamples=extra, metadata=None)
    channels = (at,) if chosen == "alpha" else chosen
    colour, alpha = pixels[..., list(channels)] / most * 255, pixels[..., at : at + 1] / most * 255
    under = colour + 255 - alpha if "assocalpha" in extra else colour * alpha / 255 + 255 - alpha
    exact = colour if chosen == "alpha" else under  # who wants to see it sees it
    window = None if dtype is np.uint8 else (0, most)
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions(channels=channels, window=window)) as source:
        found = source.read_region(0, Region(0, 0, 64, 96))
    assert np.abs(found - np.broadcast_to(exact, found.shape)).max() <= 2  # both are rounded before they meet
    if chosen != "alpha":
        assert (found[:, :16] == 255).all()


def test_a_window_is_of_colours_and_not_of_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint16)
    pixels[..., :3], pixels[..., 3] = 4095, 32768
    pixels[:, :32, :3] = 0
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, tile=(64, 64), photometric="rgb", planarconfig="contig", extrasamples=["unassalpha"], metadata=None
    )
    for channels in (None, (0, 1, 2)):
        with TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=(0, 4095), channels=channels)) as source:
            found = source.read_region(0, Region(0, 0, 64, 64)).astype(int)
        assert (np.abs(found[:, :32] - 127) <= 1).all()
        assert (found[:, 32:] == 255).all()
    each = ((0, 4095), (0, 8190), (0, 16380))
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=each, channels=(0, 1, 2))) as source:
        found = source.read_region(0, Region(0, 0, 64, 64)).astype(int)
    assert np.abs(found[0, 40] - [255, 191, 159]).max() <= 1


@pytest.mark.parametrize("value", [0, 3, 65535])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_samples_that_lie_nobody_knows_how_are_refused(tmp_path: Path, value: int, tile: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", make_image(128, 128), tile=tile, photometric="rgb", metadata=None)
    patch_tag(tmp_path / "a.tif", "PlanarConfiguration", 0, value)
    with pytest.raises(InputError, match=f"PlanarConfiguration is {value}.* export it again"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions())


@pytest.mark.parametrize(
    ("pixels", "writing", "words"),
    [
        (np.zeros((64, 64), np.uint16), {}, r"samples are uint16\. .*window: \[0, 4095\]"),
        (np.zeros((64, 64), np.float32), {}, r"samples are float32\. .*window: \[0, 1\]"),
        (np.zeros((64, 64), np.bool_), {}, r"samples are 1-bit\. .*window: \[0, 1\]"),
        (
            np.zeros((64, 64, 5), np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            r"axis S is 5 long\. .*channels: \[0, 1, 2\]",
        ),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "fourth not said to be alpha"),
        (np.zeros((4, 64, 64), np.uint8), {"photometric": "minisblack"}, r"axis I is 4 long\. .*source: \{z: 0\}"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "colours are CMYK"),
    ],
)
def test_what_is_not_8_bit_grey_or_rgb_must_be_chosen(tmp_path: Path, pixels: Any, writing: dict[str, Any], words: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **writing)
    with pytest.raises(InputError, match=words):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions())


def test_window_maps_linearly_and_clips(tmp_path: Path) -> None:
    values = np.array([[0, 100, 300, 500, 65535]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None)
    with TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=(100, 500))) as source:
        assert source.read_region(0, Region(0, 0, 1, 5))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_windows_and_channels_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1)
    with pytest.raises(ConfigError, match=r"source\.window: \[5, 5\]; the second value must be above"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions(window=(5, 5)))
    with pytest.raises(ConfigError, match=r"source\.channels: \[0, 1\]; give one"):
        TiffSource(str(tmp_path / "a.tif"), SourceOptions(channels=(0, 1)))


def test_channels_of_rgb_can_be_chosen(tmp_path: Path) -> None:
    image = make_image(100, 90, 4)
    path = write_pyramid(tmp_path / "a.tif", image, tile=64, levels=1, compression="deflate")
    with TiffSource(str(path), SourceOptions(channels=(2, 1, 0))) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 100, 90)), image[..., ::-1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_gi.tif", "0 x 2 px has no pixels"),
        ("unopenable.tiff", "compression 52479 is not supported"),
        ("broken.svs", "cannot be read as TIFF: not a TIFF file"),
        (
            "multi-channel-z-series.ome.tif",
            r"axis C is 3 long; axis Z is 5 long; samples are int8\. .*source: \{z: 0, channels: \[0, 1, 2\], window",
        ),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(slides: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiffSource(str(slides / name), SourceOptions())
