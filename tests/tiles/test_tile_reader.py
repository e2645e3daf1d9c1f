"""Tiles from pieces equal tiles read one by one, each piece is decoded once, and little is open at a time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tilestream.errors import ReadError
from tilestream.geometry import Level, Region, Size, TileGrid
from tilestream.sources.base import SegmentGrid, SlideInfo, Source
from tilestream.tiles.buffer_limits import count_open
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.resample import area_average
from tilestream.tiles.tile_reader import TileReader, pair_pieces

HEIGHT, WIDTH = 1000, 1500


class Pieces(Source):
    """An image in memory, cut into pieces, that counts what is decoded."""

    def __init__(self, image, piece, broken=(), background=()):
        self.image, self.piece, self.broken, self.background = image, piece, set(broken), set(background)
        self.decoded = []
        self.info = SlideInfo("memory", "test", "", (Level(Size(*image.shape[:2]), 1.0),), None, "")

    def _read(self, level, region):
        return self.image[region.px_y : region.px_y + region.height, region.px_x : region.px_x + region.width]

    def close(self):
        pass

    def segment_grid(self, level):
        if self.piece is None:
            return None
        (h, w), (height, width) = self.piece, self.image.shape[:2]
        return SegmentGrid(h, w, -(-height // h), -(-width // w))

    def read_segment(self, level, row, col, out=None):
        self.decoded.append((row, col))
        if (row, col) in self.broken:
            raise ReadError(f"piece {row}, {col} is broken")
        if (row, col) in self.background:
            return None
        h, w = self.piece
        return self.image[row * h : (row + 1) * h, col * w : (col + 1) * w]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


OUTSIDE = 37
"""Pixels by which the first tiles begin outside the image."""


def read_all(source, spec, y, x, batch=16, threads=2):
    with ThreadPoolExecutor(threads) as pool:
        return list(TileReader(source, spec, pool=pool, threads=threads, batch=batch).read(y, x))


def some_tiles(scale, kept=0.6, stride=224):
    grid = TileGrid(Size(HEIGHT, WIDTH), 224, stride, scale)
    row, col = grid.candidates()
    keep = np.random.default_rng(1).random(len(row)) < kept
    return grid.l0_origins(row[keep]) - OUTSIDE, grid.l0_origins(col[keep]) - OUTSIDE


@pytest.mark.parametrize("piece", [None, (240, 240), (256, 256), (64, WIDTH), (512, 128)])
@pytest.mark.parametrize("scale", [1.0, 2.0, 2.03])
@pytest.mark.parametrize("stride", [224, 100])
def test_tiles_equal_regions_whatever_the_pieces(image, piece, scale, stride):
    source, spec = Pieces(image, piece), ReadSpec(0, 1.0, 224, scale)
    y, x = some_tiles(scale, stride=stride)
    seen = {}
    for batch in read_all(source, spec, y, x):
        assert not batch.failed
        seen |= dict(zip(batch.index.tolist(), batch.pixels, strict=True))
    assert sorted(seen) == list(range(len(y)))
    for k, pixels in seen.items():
        expected = source.read_region(0, Region(int(y[k]), int(x[k]), spec.cover, spec.cover))
        if spec.resampled:
            expected = area_average(expected, 0, 0, spec.extent, 224)
        assert np.array_equal(pixels, expected)


def test_each_piece_is_decoded_once_and_none_in_vain(image):
    source, spec = Pieces(image, (240, 240)), ReadSpec(0, 1.0, 224, 1.0)
    y, x = some_tiles(1.0, kept=0.3)
    read_all(source, spec, y, x)
    needed = {
        (r, c)
        for ty, tx in zip(y, x, strict=True)
        for r in range(max(ty, 0) // 240, (min(ty + 224, HEIGHT) - 1) // 240 + 1)
        for c in range(max(tx, 0) // 240, (min(tx + 224, WIDTH) - 1) // 240 + 1)
    }
    assert sorted(source.decoded) == sorted(needed)


def test_a_broken_piece_fails_exactly_the_tiles_that_touch_it(image):
    source, spec = Pieces(image, (240, 240), broken=[(2, 3)]), ReadSpec(0, 1.0, 224, 1.0)
    y, x = some_tiles(1.0, kept=1.0)
    failed = {}
    for batch in read_all(source, spec, y, x):
        failed |= {k: failure.words for k, failure in batch.failed.items()}
    touching = [k for k in range(len(y)) if y[k] < 720 and y[k] + 224 > 480 and x[k] < 960 and x[k] + 224 > 720]
    assert sorted(failed) == touching
    assert set(failed.values()) == {"piece 2, 3 is broken"}


def test_a_background_piece_is_white(image):
    source, spec = Pieces(image, (256, 256), background=[(0, 0)]), ReadSpec(0, 1.0, 256, 1.0)
    (batch,) = read_all(source, spec, np.array([0]), np.array([0]))
    assert (batch.pixels == 255).all()


def test_the_order_does_not_depend_on_timing(image):
    y, x = some_tiles(1.0)
    orders = [
        [b.index.tolist() for b in read_all(Pieces(image, (240, 240)), ReadSpec(0, 1.0, 224, 1.0), y, x, threads=t)] for t in (1, 2, 5)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_an_empty_list_gives_no_batches(image):
    assert read_all(Pieces(image, (256, 256)), ReadSpec(0, 1.0, 224, 1.0), np.array([], np.int64), np.array([], np.int64)) == []


def test_stopping_early_leaves_no_job_behind(image):
    with ThreadPoolExecutor(2) as pool:
        batches = TileReader(Pieces(image, (64, 64)), ReadSpec(0, 1.0, 224, 1.0), pool=pool, threads=2, batch=4).read(*some_tiles(1.0))
        next(batches)
        batches.close()


@pytest.mark.parametrize("piece", [(240, 240), (256, 256), (64, WIDTH), (512, 512)])
@pytest.mark.parametrize("shard_tiles", [20, 60])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_no_more_batches_are_open_than_stated(image, piece, shard_tiles, threads, batch):
    class Watched(Pieces):
        def read_segment(self, level, row, col, out=None):
            self.open = max(getattr(self, "open", 0), len(shard_buffers[-1]))
            return super().read_segment(level, row, col)

    from tilestream.tiles import tile_reader as reading

    shard_buffers = []
    original = reading._Shard.__init__

    def remember(self, *args):
        original(self, *args)
        shard_buffers.append(self.buffers)

    source, spec = Watched(image, piece), ReadSpec(0, 1.0, 64, 1.0)
    row, col = TileGrid(Size(HEIGHT, WIDTH), 64, 64, 1.0).candidates()
    y, x = row[:shard_tiles] * 64, col[:shard_tiles] * 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading._Shard, "__init__", remember)
        read_all(source, spec, y, x, batch=batch, threads=threads)
    grid, size = source.segment_grid(0), source.info.size
    stated = count_open(spec, grid, size, y, x, batch=batch, threads=threads).batches
    assert stated - 1 <= source.open <= stated  # the last one may be opened after the last piece is read


def test_pairs_name_every_overlap_once():
    grid = SegmentGrid(10, 10, 5, 5)
    y0, x0 = np.array([0, 12, 35]), np.array([5, 0, 38])
    row, col, tile = pair_pieces((y0, x0), (y0 + 15, x0 + 15), grid, Size(50, 50))
    expected = {
        (r, c, t)
        for t in range(3)
        for r in range(y0[t] // 10, min(y0[t] + 14, 49) // 10 + 1)
        for c in range(x0[t] // 10, min(x0[t] + 14, 49) // 10 + 1)
    }
    assert len(row) == len(expected)
    assert set(zip(row.tolist(), col.tolist(), tile.tolist(), strict=True)) == {tuple(map(int, e)) for e in expected}
