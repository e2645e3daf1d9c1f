"""Damaged files: no damage ends or hangs the process, and it fails only the tiles that touch it."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from tests.support.images import make_image, write_svs
from tilestream.errors import InputError
from tilestream.reading import TileReader
from tilestream.readspec import ReadSpec
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff import TiffSource

NAME, TILE = "CMU-1-Small-Region.svs", 224


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def read_all(path, pool):
    """Pixels by tile, and why the others failed, over the whole of level 0."""
    with TiffSource(str(path), SourceOptions()) as source:
        size = source.info.size
        y, x = (a.ravel().astype(np.int64) for a in np.mgrid[0 : size.height : TILE, 0 : size.width : TILE])
        pixels, failed = {}, {}
        for batch in TileReader(source, ReadSpec(0, 1.0, TILE, 1.0), pool=pool, threads=2, batch=16).read(y, x):
            failed |= batch.failed
            pixels |= {k: each for k, each in zip(batch.index.tolist(), batch.pixels, strict=True) if k not in batch.failed}
    assert sorted([*pixels, *failed]) == list(range(len(y)))
    return pixels, failed, list(zip(y.tolist(), x.tolist(), strict=True))


def touching(places, page, cell):
    """Tiles that overlap a file tile."""
    across = -(-page.imagewidth // page.tilewidth)
    top, left = cell // across * page.tilelength, cell % across * page.tilewidth
    return {
        k
        for k, (y, x) in enumerate(places)
        if y < top + page.tilelength and top < y + TILE and x < left + page.tilewidth and left < x + TILE
    }


def test_a_zeroed_piece_fails_the_tiles_that_touch_it_in_the_decoders_words(slides, tmp_path, pool):
    sound, _, places = read_all(slides / NAME, pool)
    path = tmp_path / NAME
    shutil.copyfile(slides / NAME, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        hit = touching(places, page, 37)
        offset, count = page.dataoffsets[37], page.databytecounts[37]
    with path.open("r+b") as file:
        file.seek(offset + count // 2)
        file.write(bytes(count - count // 2))
    pixels, failed, _ = read_all(path, pool)
    assert set(failed) == hit
    assert all("file tile (3, 7): JPEG decoder: " in reason for reason in failed.values())
    assert all(np.array_equal(each, sound[k]) for k, each in pixels.items())


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_cut_file_whose_index_is_whole_fails_the_tiles_past_the_cut(tmp_path, pool, part):
    whole = write_svs(tmp_path / "whole.svs", make_image(1500, 1600, 1), levels=1)
    with tifffile.TiffFile(whole) as tif:
        page = tif.pages[0]
        end = int(page.dataoffsets[0] + (page.dataoffsets[-1] - page.dataoffsets[0]) * part)
        cut = {k for k, (o, c) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)) if o + c > end}
        sound, _, places = read_all(whole, pool)
        hit = set().union(*(touching(places, page, cell) for cell in cut))
    path = tmp_path / "cut.svs"
    path.write_bytes(_keep_pages(whole.read_bytes(), end))
    pixels, failed, _ = read_all(path, pool)
    assert set(failed) == hit
    assert all("beyond the file's" in reason and "copy it again" in reason for reason in failed.values())
    assert all(np.array_equal(each, sound[k]) for k, each in pixels.items())


def _keep_pages(data, end):
    """The first `end` bytes, as of a slide of one page: the place of a page that would follow is overwritten with "none"."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        assert tif.pages[0].offset < end, "the index comes before the pixels"
        at = tif.pages[0].offset + 2 + 12 * len(tif.pages[0].tags)
        assert not tif.is_bigtiff
    return data[:at] + bytes(4) + data[at + 4 : end]


def test_wrong_bytes_anywhere_in_the_pixels_never_end_the_process(slides, tmp_path, pool):
    sound, _, places = read_all(slides / NAME, pool)
    path = tmp_path / NAME
    data = (slides / NAME).read_bytes()
    with tifffile.TiffFile(slides / NAME) as tif:
        page = tif.pages[0]
        offsets, counts = np.array(page.dataoffsets), np.array(page.databytecounts)
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(200):
            cell = int(rng.integers(len(offsets)))
            at = int(offsets[cell] + rng.integers(counts[cell]))
            damaged = bytearray(data)
            damaged[at] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            pixels, failed, _ = read_all(path, pool)
            hit = touching(places, page, cell)
            assert set(failed) in (set(), hit)
            assert all(np.array_equal(each, sound[k]) for k, each in pixels.items() if k not in hit)
            refused += bool(failed)
    assert 0 < refused < 200  # some damage is found by the decoder, some only changes the picture


def test_bytes_that_are_no_tiff_at_all_are_refused_in_words(tmp_path, pool):
    path = tmp_path / "a.svs"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    with pytest.raises(InputError, match=r"a\.svs: cannot be read as TIFF: not a TIFF file"):
        read_all(path, pool)
