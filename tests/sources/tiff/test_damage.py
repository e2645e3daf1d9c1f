"""Damaged and hostile TIFF files: what is broken fails by itself, and nothing takes memory on a claim."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.sources.tiff.test_source import read_openslide
from tests.support.images import make_image, write_pyramid
from tests.support.tiff_tags import patch_tag
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource


def test_pieces_without_bytes_are_white_background(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    patch_tag(path, "TileByteCounts", 1, 0)
    with TiffSource(str(path), SourceOptions()) as source:
        assert source.read_segment(0, 0, 1) is None
        assert (source.read_region(0, Region(0, 64, 64, 64)) == 255).all()
        np.testing.assert_array_equal(source.read_region(0, Region(0, 60, 64, 68)), read_openslide(path, 0, Region(0, 60, 64, 68)))


def test_offsets_beyond_the_end_fail_that_tile_only(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    patch_tag(path, "TileOffsets", 2, 10**8)
    with TiffSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"file tile \(1, 0\): \d+ bytes at 100000000 lie beyond the file's"):
            source.read_segment(0, 1, 0)
        assert source.read_segment(0, 0, 0) is not None


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw", "jpeg2000"])
def test_damaged_pieces_fail_with_the_decoders_words(tmp_path: Path, compression: str) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1, compression=compression)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * min(count, 200))
    with TiffSource(str(path), SourceOptions()) as source:
        with pytest.raises(ReadError, match=r"file tile \(0, 1\): de"):
            source.read_segment(0, 0, 1)
        assert source.read_segment(0, 0, 0) is not None


def test_huge_tiles_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    shutil.copy(path, tmp_path / "cut.tif")
    with (tmp_path / "cut.tif").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(InputError, match=r"cut\.tif: cannot be read as TIFF"):
        TiffSource(str(tmp_path / "cut.tif"), SourceOptions())
    for tag in ("TileWidth", "TileLength"):
        patch_tag(path, tag, 0, 32768)
    with pytest.raises(InputError, match=r"32768 x 32768 px decodes to 3072 MiB, the limit is 256 MiB"):
        TiffSource(str(path), SourceOptions())


def test_a_huge_jpeg_in_a_small_tile_is_not_decoded(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0", offset, offset + count)
    with path.open("r+b") as file:
        file.seek(frame + 5)
        file.write(b"\xff\xdc\xff\xdc")
    with (
        TiffSource(str(path), SourceOptions()) as source,
        pytest.raises(ReadError, match="JPEG of 65500 x 65500 px in a file tile of 64 x 64"),
    ):
        source.read_segment(0, 0, 0)


def test_a_huge_jpeg_2000_in_a_small_tile_is_not_decoded(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", make_image(128, 128), tile=64, levels=1, compression="jpeg2000")
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">2I", 60000, 50000)
    path.write_bytes(data)
    with (
        TiffSource(str(path), SourceOptions()) as source,
        pytest.raises(ReadError, match="image of 50000 x 60000 px in a file tile of 64 x 64"),
    ):
        source.read_segment(0, 0, 0)


def test_an_index_that_lists_too_few_pieces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(4_194_560)
    with pytest.raises(InputError, match=r"lists 16 pieces where 4 x 65540 x 1 belong"):
        open_source(str(path), SourceOptions())  # OpenSlide opens it, and fails on each of 262,144 tiles


def test_only_the_damaged_tile_fails(slides: Path) -> None:
    with (
        TiffSource(str(slides / "badtile.svs"), SourceOptions()) as source,
        TiffSource(str(slides / "CMU-1-Small-Region.svs"), SourceOptions()) as good,
    ):
        with pytest.raises(ReadError, match=r"badtile\.svs: level 0, file tile \(3, 5\): not a JPEG"):
            source.read_segment(0, 3, 5)
        for row, col in [(3, 4), (3, 6), (2, 5), (4, 5)]:
            np.testing.assert_array_equal(source.read_segment(0, row, col), np.array(good.read_segment(0, row, col)))
