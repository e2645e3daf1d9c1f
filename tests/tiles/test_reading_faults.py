"""Damaged files: nothing crashes or hangs, only tiles over the damage fail, with the decoder's words, and the others keep their pixels."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import tifffile

from tilestream.errors import InputError, TilestreamError
from tilestream.geometry import Size, TileGrid
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

TILE, PIECE = 224, 240
SPEC = ReadSpec(0, 1.0, TILE, 1.0)
HEIGHT, WIDTH = 2967, 2220

pytestmark = pytest.mark.timeout(120)


@dataclass
class Slide:
    """A sound slide: where its file tiles lie, and every tile's pixels."""

    path: str
    offsets: tuple
    counts: tuple
    y: np.ndarray
    x: np.ndarray
    pixels: np.ndarray
    cols: int = -(-WIDTH // PIECE)

    def touching(self, pieces):
        """Numbers of the tiles that overlap any of these file tiles, (row, column)."""
        return {
            k
            for k, (y, x) in enumerate(zip(self.y.tolist(), self.x.tolist(), strict=True))
            if any(y < (r + 1) * PIECE and y + TILE > r * PIECE and x < (c + 1) * PIECE and x + TILE > c * PIECE for r, c in pieces)
        }

    def around(self, row, col):
        """Numbers of the tiles that overlap a file tile or one of its eight neighbours."""
        return sorted(self.touching([(row + down, col + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]))


def read_tiles(source, y, x):
    """All tiles by number, and why the others failed."""
    pixels, failed = {}, {}
    with ThreadPoolExecutor(2) as pool:
        for batch in TileReader(source, SPEC, pool=pool, threads=2, batch=16).read(y, x):
            failed |= {k: failure.words for k, failure in batch.failed.items()}
            pixels |= {k: tile for k, tile in zip(batch.index.tolist(), batch.pixels, strict=True) if k not in batch.failed}
    return pixels, failed


@pytest.fixture(scope="module")
def sound(slides):
    path = slides / "CMU-1-Small-Region.svs"
    grid = TileGrid(Size(HEIGHT, WIDTH), TILE, TILE, 1.0)
    row, col = grid.candidates()
    y, x = grid.l0_origins(row), grid.l0_origins(col)
    with TiffSource(str(path), SourceOptions()) as source:
        pixels, failed = read_tiles(source, y, x)
    assert not failed
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        offsets, counts = page.dataoffsets, page.databytecounts
    return Slide(str(path), offsets, counts, y, x, np.stack([pixels[k] for k in range(len(y))]))


@pytest.fixture
def damaged(sound, tmp_path):
    path = tmp_path / "damaged.svs"
    shutil.copyfile(sound.path, path)  # not copy: the slides may be read-only
    return path


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("piece", [(0, 0), (3, 5), (12, 9)])
def test_a_zeroed_file_tile_fails_the_tiles_over_it_and_no_other(sound, damaged, piece):
    cell = piece[0] * sound.cols + piece[1]
    overwrite(damaged, sound.offsets[cell], bytes(sound.counts[cell]))
    with TiffSource(str(damaged), SourceOptions()) as source:
        pixels, failed = read_tiles(source, sound.y, sound.x)
    assert set(failed) == sound.touching([piece])
    for message in failed.values():
        assert f"level 0, file tile {piece}: " in message
        assert "not a JPEG: starts with 00 00 00 00" in message
    assert_equal(pixels, sound)


def assert_equal(pixels, sound, numbers=None, besides=()):
    """Every tile but those named has the sound file's pixels; `numbers` are the tiles that were asked for."""
    for k, tile in pixels.items():
        number = k if numbers is None else numbers[k]
        if number not in besides:
            assert np.array_equal(tile, sound.pixels[number]), f"tile {number}"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
def test_a_file_cut_off_while_it_is_open_fails_the_tiles_beyond_the_cut(sound, damaged, share):
    end = int(sound.offsets[-1] * share)
    lost = [divmod(k, sound.cols) for k, (at, count) in enumerate(zip(sound.offsets, sound.counts, strict=True)) if at + count > end]
    with TiffSource(str(damaged), SourceOptions()) as source:
        os.truncate(damaged, end)
        pixels, failed = read_tiles(source, sound.y, sound.x)
    assert set(failed) == sound.touching(lost)
    assert all("the file gave " in message for message in failed.values())
    assert_equal(pixels, sound)


def test_a_file_cut_off_in_its_index_is_refused(sound, damaged):
    os.truncate(damaged, sound.offsets[-1])  # an SVS has the index of its first page behind the pixels
    with pytest.raises(InputError, match=r"damaged\.svs: tifffile finds no image in the file"):
        TiffSource(str(damaged), SourceOptions())


def test_a_file_cut_off_behind_its_index_keeps_the_tiles_before_the_cut(tmp_path, sound):
    path = tmp_path / "cut.tif"
    image = np.tile(sound.pixels[60], (4, 4, 1))
    tifffile.imwrite(path, image, tile=(128, 128), compression="jpeg", photometric="ycbcr", metadata=None)
    with tifffile.TiffFile(path) as tif:
        offsets, counts = tif.pages[0].dataoffsets, tif.pages[0].databytecounts
    cut = offsets[30] + 5
    spec, cols = ReadSpec(0, 1.0, 128, 1.0), -(-image.shape[1] // 128)
    y, x = (axis.ravel() * 128 for axis in np.mgrid[:7, :7])
    os.truncate(path, cut)
    with TiffSource(str(path), SourceOptions()) as source, ThreadPoolExecutor(2) as pool:
        failed = {}
        for batch in TileReader(source, spec, pool=pool, threads=2, batch=8).read(y, x):
            failed |= {k: failure.words for k, failure in batch.failed.items()}
    assert cols == 7
    assert set(failed) == {k for k in range(49) if offsets[k] + counts[k] > cut}
    assert all("The file is cut off" in message for message in failed.values())


@pytest.mark.slow
def test_two_hundred_flipped_bytes_one_after_another(sound, damaged):
    """In pixels and headers of random file tiles: a flip fails all tiles over its file tile or changes nothing outside it."""
    rng = np.random.default_rng(0)
    failures = changes = 0
    with TiffSource(str(damaged), SourceOptions()) as source:
        for number in range(200):
            cell = int(rng.integers(len(sound.offsets)))
            # Every fourth flip hits the first bytes, where the markers are.
            at = sound.offsets[cell] + int(rng.integers(min(40, sound.counts[cell]) if number % 4 == 0 else sound.counts[cell]))
            piece = divmod(cell, sound.cols)
            old = flip(damaged, at, int(rng.integers(1, 256)))
            near = sound.around(*piece)
            pixels, failed = read_tiles(source, sound.y[near], sound.x[near])
            touching = sound.touching([piece])
            assert {near[k] for k in failed} in (set(), touching), f"flip {number} at {at}"
            for message in failed.values():
                assert f"level 0, file tile {piece}: " in message
                assert message.partition(f"{piece}: ")[2], "the decoder's words"
            assert_equal(pixels, sound, near, besides=touching)
            changed = assert_equal_outside(pixels, sound, near, piece)
            failures, changes = failures + bool(failed), changes + changed
            overwrite(damaged, at, old)
        pixels, failed = read_tiles(source, sound.y, sound.x)
    assert not failed  # an error leaves nothing behind
    assert_equal(pixels, sound)
    assert failures >= 10
    assert changes >= 10


def flip(path, at, mask):
    """Change a byte of a file and return the old one."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ mask]))
    return old


def assert_equal_outside(pixels, sound, numbers, piece):
    """Whether any pixel inside a file tile differs; outside it none may."""
    (top, left), changed = (piece[0] * PIECE, piece[1] * PIECE), False
    for k, tile in pixels.items():
        y, x = sound.y[numbers[k]], sound.x[numbers[k]]
        differs = (tile != sound.pixels[numbers[k]]).any(axis=-1)
        changed |= bool(differs.any())
        differs[max(0, top - y) : max(0, top + PIECE - y), max(0, left - x) : max(0, left + PIECE - x)] = False
        assert not differs.any(), f"tile {numbers[k]} changed outside file tile {piece}"
    return changed


def test_flipped_bytes_of_the_index_are_refused_or_read(sound, damaged):
    """What the index says may change in any way: the answer is an error for users, or tiles with a reason for each that failed."""
    rng = np.random.default_rng(1)
    begin = max(at + count for at, count in zip(sound.offsets, sound.counts, strict=True))
    places = [*range(16), *rng.integers(begin, begin + 2200, 84).tolist()]  # the header; the first page's index and its arrays
    some = slice(0, len(sound.y), 9)
    refused = []
    for at in places:
        old = flip(damaged, at, int(rng.integers(1, 256)))
        try:
            with TiffSource(str(damaged), SourceOptions()) as source:
                pixels, failed = read_tiles(source, sound.y[some], sound.x[some])
        except TilestreamError as error:
            refused.append(str(error))
        else:
            assert all(failed.values())
            assert len(pixels) + len(failed) == len(sound.y[some])
        overwrite(damaged, at, old)
    assert all(str(damaged) in message for message in refused)
    assert 0 < len(refused) < len(places)
