"""TIFF images whose samples are numbers of colours: Pillow, and the tables that were written, are the judges. And colours that are not read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tilestream.errors import InputError
from tilestream.geometry import Region, Size
from tilestream.sources import open_image, open_source
from tilestream.sources.base import SourceOptions

H, W = 150, 210


def numbers_of(bits: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 2**bits, (H, W)).astype(np.uint8 if bits <= 8 else np.uint16)


def table_of(bits: int, seed: int = 1) -> NDArray[np.uint16]:
    """(3, 2^bits) of 16 bits."""
    return np.random.default_rng(seed).integers(0, 65536, (3, 2**bits)).astype(np.uint16)


def write_palette(path: Path, numbers: NDArray[Any], table: NDArray[np.uint16], **coding: Any) -> Path:
    tifffile.imwrite(path, numbers, photometric="palette", colormap=table, metadata=None, **coding)
    return path


def read(path: Path | str, **choices: Any) -> NDArray[Any]:
    with open_image(path, **choices) as source:
        return source.read((0, 0, H, W)).copy()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("pieces", [{"tile": (64, 64)}, {"rowsperstrip": 32}])
def test_numbers_become_the_colours_of_their_table(tmp_path: Path, bits: int, compression: str | None, pieces: dict[str, Any]) -> None:
    numbers, table = numbers_of(bits), table_of(bits)
    path = write_palette(tmp_path / "a.tif", numbers, table, compression=compression, **pieces)
    found = read(path)
    np.testing.assert_array_equal(found, np.moveaxis(table[:, numbers] // 256, 0, -1))
    if bits == 8:
        np.testing.assert_array_equal(found, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("nodata", [None, 1])
@pytest.mark.parametrize("tiled", [True, False])
def test_packed_numbers_are_those_of_gdal(tmp_path: Path, bits: int, nodata: int | None, *, tiled: bool) -> None:
    numbers, table = numbers_of(bits), table_of(bits) // 256
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64} if tiled else {}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=H, width=W, count=1, dtype="uint8", nbits=bits, photometric="palette",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), crs="EPSG:32633", nodata=nodata, **blocks,
    ) as made:  # fmt: skip
        made.write(numbers, 1)
        made.write_colormap(1, {k: (*(int(v) for v in colour), 255) for k, colour in enumerate(table.T)})
    expected = np.moveaxis(table[:, numbers], 0, -1)
    if nodata is not None:
        expected = np.where((numbers == nodata)[..., np.newaxis], 255, expected)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), expected)


def test_a_table_of_eight_bits_is_taken_as_it_is(tmp_path: Path) -> None:
    numbers, table = numbers_of(8), table_of(8) // 256
    np.testing.assert_array_equal(
        read(write_palette(tmp_path / "a.tif", numbers, table, tile=(64, 64))), np.moveaxis(table[:, numbers], 0, -1)
    )


def test_numbers_themselves_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    numbers = numbers_of(8)
    path = write_palette(tmp_path / "a.tif", numbers, table_of(8), tile=(64, 64))
    np.testing.assert_array_equal(read(path, channels=(0,)), np.repeat(numbers[..., np.newaxis], 3, axis=2))
    np.testing.assert_array_equal(read(path, channels=(0,), normalise="none"), numbers[..., np.newaxis].astype(np.float32))


def test_alpha_beside_numbers_is_composited(tmp_path: Path) -> None:
    numbers, table = numbers_of(8), table_of(8)
    alpha = numbers_of(8, 5)
    path = tmp_path / "a.tif"
    tags = [(320, 3, 768, tuple(table.ravel().tolist()), True), (338, 3, 1, 2, True)]
    tifffile.imwrite(path, np.stack([numbers, alpha], -1), photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags[:1],
                     extrasamples=["unassalpha"], tile=(64, 64))  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    colours = np.moveaxis(table[:, numbers] // 256, 0, -1).astype(float)
    share = alpha[..., np.newaxis] / 255
    assert np.abs(read(path) - (colours * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("other", ["table", "grey", "inverted"])
def test_a_smaller_page_whose_numbers_mean_something_else_is_no_level(tmp_path: Path, other: str) -> None:
    table = table_of(8)
    kinds: dict[str, dict[str, Any]] = {
        "table": {"photometric": "palette", "colormap": table_of(8, 7)},
        "grey": {"photometric": "minisblack"},
        "inverted": {"photometric": "miniswhite"},
    }
    own = {"photometric": "minisblack"} if other == "inverted" else {"photometric": "palette", "colormap": table}
    for name, second in (("alike", own), ("other", kinds[other])):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as tif:
            tif.write(numbers_of(8), tile=(64, 64), metadata=None, **own)
            tif.write(numbers_of(8)[::2, ::2].copy(), tile=(64, 64), metadata=None, subfiletype=1, **second)
    with open_image(tmp_path / "alike.tif") as source:
        assert [level.size for level in source.info.levels] == [Size(H, W), Size(H // 2, W // 2)]
        expected = read(tmp_path / "alike.tif")[::2, ::2]
        np.testing.assert_array_equal(source.read_region(1, Region(0, 0, H // 2, W // 2)), expected)
    with open_image(tmp_path / "other.tif") as source:
        assert [level.size for level in source.info.levels] == [Size(H, W)]


def write_map(path: Path, numbers: NDArray[Any], table: NDArray[np.uint16], left: float) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=H, width=W, count=1, dtype="uint8", photometric="palette", tiled=True, blockxsize=64,
        blockysize=64, transform=rasterio.Affine(10, 0, left, 0, -10, 5e6), crs="EPSG:32633",
    ) as made:  # fmt: skip
        made.write(numbers, 1)
        made.write_colormap(1, {k: (*(int(v) for v in colour), 255) for k, colour in enumerate(table.T)})


def test_maps_of_one_table_are_one_mosaic_and_others_are_refused(tmp_path: Path) -> None:
    table, left, right = table_of(8) // 256, numbers_of(8, 1), numbers_of(8, 2)
    for folder, second in (("same", table), ("other", table_of(8, 9) // 256)):
        (tmp_path / folder).mkdir()
        write_map(tmp_path / folder / "a.tif", left, table, 5e5)
        write_map(tmp_path / folder / "b.tif", right, second, 5e5 + 10 * W)
    with open_source(f"mosaic://{tmp_path}/same", SourceOptions()) as source:
        np.testing.assert_array_equal(source.read((0, 0, H, 2 * W)), np.moveaxis(table[:, np.hstack([left, right])], 0, -1))
    with pytest.raises(InputError, match=r"b\.tif: has 1 bands of uint8, .*numbers of 256 colours"):
        open_source(f"mosaic://{tmp_path}/other", SourceOptions())


@pytest.mark.parametrize("damage", ["none", "short"])
def test_numbers_without_their_table_are_refused(tmp_path: Path, damage: str) -> None:
    tags = [] if damage == "none" else [(320, 3, 30, tuple(range(30)), True)]
    tifffile.imwrite(tmp_path / "a.tif", numbers_of(8), photometric="minisblack", metadata=None, extratags=tags)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        tif.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    told = "no ColorMap" if damage == "none" else "a ColorMap of 30 values"
    with pytest.raises(InputError, match=f"numbers of 256 colours, but the file has {told} where 768 belong"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "CMYK"), ("LAB", "CIELAB")])
def test_colours_that_are_not_read_are_refused_with_the_command_that_converts_them(tmp_path: Path, mode: str, name: str) -> None:
    path = tmp_path / "a slide.tif"
    Image.new(mode, (64, 64)).save(path)
    with pytest.raises(InputError, match=f"colours are {name}; grey, palettes, RGB and YCbCr are read") as caught:
        open_image(path)
    command = shlex.split(str(caught.value).partition("Convert it to RGB: ")[2])
    assert command == ["vips", "colourspace", str(path), "rgb.tif[tile,pyramid,compression=deflate,bigtiff]", "srgb"]
