"""Parts of a file that were never written are no pixels, whatever the codec; zeros that were written are, however the file is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tests.support.images import make_image
from tilestream.errors import ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource

SIDE, TILE = 512, 128
IMAGE = np.maximum(make_image(SIDE, SIDE), 1)
"""Without black pixels."""

CODINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "webp": {"compression": "webp", "compressionargs": {"level": 90}},
    "lossless webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpegxr": {"compression": "jpegxr"},
    "jpeg2000": {"compression": "jpeg2000"},
    "deflate": {"compression": "deflate"},
    "jpeg": {"compression": "jpeg"},
}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the smallest hole that the file system of the tests keeps."""
    path = tmp_path_factory.mktemp("block") / "a"
    copy_without(b"\1" * 2**18, path, [(2**17, 2**17 + 2**16)], 1)
    with path.open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 2**17, "the folder for tests is on a file system that knows no holes"
    return path.stat().st_blksize


def copy_without(data: bytes, path: Path, holes: list[tuple[int, int]], block: int) -> list[tuple[int, int]]:
    """A copy in which holes, grown to whole blocks, are never written; where they are."""
    kept = [(start // block * block, min(len(data), -(-end // block) * block)) for start, end in holes]
    with path.open("wb") as file:
        file.truncate(len(data))
        place = 0
        for start, end in [*kept, (len(data), len(data))]:
            file.seek(place)
            file.write(data[place:start])
            place = end
    return kept


def write(path: Path, image: NDArray[np.uint8], coding: dict[str, Any], **more: Any) -> Path:
    tifffile.imwrite(path, image, photometric="rgb", tile=(TILE, TILE), metadata=None, **coding, **more)
    return path


def places(path: Path) -> list[tuple[int, int]]:
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        return [(start, start + count) for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]


@pytest.mark.parametrize("where", ["end", "middle"])
@pytest.mark.parametrize("coding", CODINGS)
def test_tiles_of_which_a_part_was_never_written_fail_and_others_are_right(tmp_path: Path, block: int, coding: str, where: str) -> None:
    path = write(tmp_path / "whole.tif", IMAGE, CODINGS[coding])
    tiles, data = places(path), path.read_bytes()
    first, last = (9, 15) if where == "end" else (5, 7)
    wanted = ((tiles[first][0] + tiles[first][1]) // 2, len(data) if where == "end" else (tiles[last][0] + tiles[last][1]) // 2)
    [hole] = copy_without(data, tmp_path / "cut.tif", [wanted], block)
    hurt = [start < hole[1] and hole[0] < end for start, end in tiles]
    assert any(hurt)
    assert not all(hurt)
    with open_source(str(tmp_path / "cut.tif"), SourceOptions()) as source, open_source(str(path), SourceOptions()) as whole:
        for number, lost in enumerate(hurt):
            row, col = divmod(number, SIDE // TILE)
            if lost:
                with pytest.raises(ReadError, match=rf"file tile \({row}, {col}\): \d+ of its \d+ bytes at \d+ were never written"):
                    source.read_segment(0, row, col)
            else:
                expected = np.array(whole.read_segment(0, row, col))
                np.testing.assert_array_equal(source.read_segment(0, row, col), expected)


def dig(path: Path, dug: Path, block: int) -> int:
    """Copy a file so that every whole block of zeros is a hole, as `cp --sparse=always` and ZFS do; the number of such blocks."""
    data = path.read_bytes()
    empty = [k for k in range(0, len(data), block) if not any(data[k : k + block])]
    copy_without(data, dug, [(k, min(len(data), k + block)) for k in empty], block)
    assert dug.read_bytes() == data
    return len(empty)


def black_image(kind: str) -> NDArray[np.uint8]:
    y, x = np.mgrid[:SIDE, :SIDE]
    black = {
        "all": y >= 0,
        "tiles": (y // TILE + x // TILE) % 2 == 0,
        "disk": (y - 250) ** 2 + (x - 240) ** 2 < 200**2,
        "bottom": y >= 300,
        "stripe": (y > 101) & (y < 300),
    }[kind]
    return np.where(black[..., np.newaxis], np.uint8(0), IMAGE)


@pytest.mark.parametrize("align", [16, 4096, 65536])
@pytest.mark.parametrize("coding", ["none", "lossless webp"])
@pytest.mark.parametrize("kind", ["all", "tiles", "disk", "bottom", "stripe"])
def test_black_that_was_written_is_read_though_the_file_keeps_it_as_holes(
    tmp_path: Path, block: int, kind: str, coding: str, align: int
) -> None:
    image = black_image(kind)
    with tifffile.TiffWriter(tmp_path / "whole.tif", bigtiff=True) as tif:
        tif.write(image, photometric="rgb", tile=(TILE, TILE), metadata=None, align=align, **CODINGS[coding])
    dug = dig(tmp_path / "whole.tif", tmp_path / "dug.tif", block)
    if coding == "none":
        assert dug > 0
    with TiffSource(str(tmp_path / "dug.tif"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, SIDE, SIDE)), image)


@pytest.mark.parametrize("width", [512, 1024, 4096])
def test_black_rows_of_whole_blocks_are_read(tmp_path: Path, block: int, width: int) -> None:
    """Rows whose bytes divide a block: what is black begins and ends where blocks do."""
    rows = np.full((96, width), 9, np.uint8)
    rows[32:64] = 0
    with tifffile.TiffWriter(tmp_path / "whole.tif", bigtiff=True) as tif:
        tif.write(rows, photometric="minisblack", rowsperstrip=96, metadata=None, align=65536)
    assert dig(tmp_path / "whole.tif", tmp_path / "dug.tif", block) > 0
    with TiffSource(str(tmp_path / "dug.tif"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 96, width))[..., 0], rows)
