"""Tile batches from a source: each piece of the file is decoded once and copied into the tiles that it overlaps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ReadError
from tilestream.geometry import Region, Size
from tilestream.readspec import JOB_PIXELS, ReadSpec
from tilestream.resample import area_average
from tilestream.sources.base import WHITE, Pixels, SegmentGrid, Source

Index = NDArray[np.int64]


@dataclass(frozen=True)
class TileBatch:
    """Tiles that are ready, in the order of reading."""

    index: Index
    """(n,) place of each tile in the list that was asked for."""
    pixels: NDArray[np.uint8]
    """(n, tile, tile, 3) uint8 RGB; undefined where the tile failed."""
    failed: dict[int, str] = field(default_factory=dict)
    """Why reading failed, by place in the list that was asked for."""


class PixelBuffers:
    """Buffers that are used again: an allocator that keeps what threads free would hold several times the pixels in use."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """A buffer of `shape`; contents are whatever was left there."""
        try:
            return self._free[shape].pop()  # one bytecode of a list: safe between threads
        except (KeyError, IndexError):
            return np.empty(shape, np.uint8)

    def give(self, pixels: NDArray[np.uint8]) -> None:
        """Take a buffer (or the leading part of one) back; the caller must not touch it again."""
        whole = pixels if pixels.base is None else pixels.base
        assert isinstance(whole, np.ndarray), "buffers come from take"
        self._free.setdefault(whole.shape, []).append(whole)


@dataclass(frozen=True)
class _Jobs:
    """The order of work: runs of pieces, and for each tile the run that completes it."""

    piece: list[list[tuple[int, int, list[int]]]]
    """For each job: (row, column, tiles that overlap it) of each piece."""
    slots: Index
    """(n,) tiles in order of completion."""
    last_job: Index
    """(n,) job that completes the tile in each slot; -1 where no piece is needed."""
    first_job: Index
    """(n,) first job that touches the tile in each slot."""


class TileReader:
    """Reads lists of tiles of one image.

    Order
    -----
    Batches come in a fixed order that depends on the tile list alone, not on timing: pieces are visited along the
    shorter side of the list's bounding box, so few tiles are open at once.

    Memory bound
    ------------
    Open tiles are those that overlap the pieces of two neighbouring lines along the shorter side, plus the jobs
    ahead (2 a thread): `pending_tiles` gives the count. Each costs `tile² * 3` bytes, and `cover² * 3` more where it is averaged.
    """

    def __init__(
        self, source: Source, spec: ReadSpec, *, pool: Executor, threads: int, batch: int, buffers: PixelBuffers | None = None
    ) -> None:
        self.source = source
        self.spec = spec
        self.buffers = buffers or PixelBuffers()
        self.pool = pool
        self.ahead = 2 * threads + 1
        self.batch = batch

    def read(self, l0_y: Index, l0_x: Index) -> Iterator[TileBatch]:
        """Batches of the tiles whose level-0 top-left corners are (n,) `l0_y`, `l0_x`. A tile that fails is in `failed`."""
        if len(l0_y) == 0:
            return
        job = _Shard(self.source, self.spec, (self.spec.px_origins(l0_y), self.spec.px_origins(l0_x)), self.batch, self.buffers)
        pending: deque[Future[None]] = deque()
        submitted = done = 0
        try:
            for number, last in enumerate(job.last_job_of_batch):
                while done <= last:
                    while submitted < len(job.jobs.piece) and len(pending) < self.ahead:
                        job.open_batches(submitted)
                        pending.append(self.pool.submit(job.run, submitted))
                        submitted += 1
                    pending.popleft().result()
                    done += 1
                job.open_batches(last)
                yield job.take(number)
        finally:
            for future in pending:
                future.cancel()
            for future in pending:
                if not future.cancelled():
                    future.exception()


class _Shard:
    """One list of tiles on its way from pieces to batches."""

    def __init__(
        self, source: Source, spec: ReadSpec, origins: tuple[NDArray[np.float64], NDArray[np.float64]], batch: int, free: PixelBuffers
    ) -> None:
        self.source, self.spec, self.batch, self.free = source, spec, batch, free
        self.px_y, self.px_x = px_y, px_x = origins
        self.y0, self.x0 = np.floor(px_y).astype(np.int64), np.floor(px_x).astype(np.int64)
        level = source.info.levels[spec.level]
        self.size = level.size
        self.grid = source.segment_grid(spec.level)
        if self.grid is None:
            pairs = _pair_tiles(len(px_y))
        else:
            ends = [
                np.ceil(px + spec.extent - 1e-9).astype(np.int64) if spec.resampled else px.astype(np.int64) + spec.tile
                for px in (px_y, px_x)
            ]
            pairs = pair_pieces((self.y0, self.x0), (ends[0], ends[1]), self.grid, level.size)
        self.jobs = _order_jobs(*pairs, len(px_y), JOB_PIXELS // _piece_area(self.grid, spec))
        self.slot_of = np.empty(len(px_y), np.int64)
        self.slot_of[self.jobs.slots] = np.arange(len(px_y))
        starts = np.arange(0, len(px_y), batch)
        self.last_job_of_batch = np.maximum.reduceat(self.jobs.last_job, starts).tolist()
        self.first_job_of_batch = np.minimum.reduceat(self.jobs.first_job, starts).tolist()
        self.waiting = np.bincount(pairs[2], minlength=len(px_y)).tolist()  # pieces that a tile still waits for
        self.buffers: dict[int, NDArray[np.uint8]] = {}
        self.covers: dict[int, Pixels] = {}
        self.failed: dict[int, str] = {}
        self.lock = threading.Lock()

    def open_batches(self, job: int) -> None:
        """Allocate the batches that `job` is the first to touch."""
        for number, first in enumerate(self.first_job_of_batch):
            if first <= job and number not in self.buffers:
                self._open_batch(number)

    def _open_batch(self, number: int) -> None:
        start = number * self.batch
        count = min(self.batch, len(self.px_y) - start)
        self.buffers[number] = self.free.take(self.batch, self.spec.tile, self.spec.tile, 3)[:count]
        self.first_job_of_batch[number] = len(self.jobs.piece) + 1
        if not self.spec.resampled:
            for tile in self.jobs.slots[start : start + count].tolist():
                if self._hangs_over(tile):
                    self._tile(tile)[:] = WHITE

    def _hangs_over(self, tile: int) -> bool:
        cover = self.spec.cover
        return bool(self.y0[tile] + cover > self.size.height or self.x0[tile] + cover > self.size.width)

    def _tile(self, tile: int) -> Pixels:
        """The output pixels of a tile, (tile, tile, 3), a view into its batch."""
        number, place = divmod(int(self.slot_of[tile]), self.batch)
        view: Pixels = self.buffers[number][place]
        return view

    def take(self, number: int) -> TileBatch:
        """A finished batch, which the shard forgets."""
        index = self.jobs.slots[number * self.batch : (number + 1) * self.batch]
        pixels = self.buffers.pop(number)
        return TileBatch(index, pixels, {k: self.failed[k] for k in index.tolist() if k in self.failed})

    def run(self, job: int) -> None:
        """Decode the pieces of one job and copy them into the tiles that they overlap."""
        for row, col, tiles in self.jobs.piece[job]:
            if self.grid is None:
                self._read_tile(row)
            else:
                self._scatter(self.grid, row, col, tiles)
            if self.spec.resampled:
                self._finish(tiles)

    def _scatter(self, grid: SegmentGrid, row: int, col: int, tiles: list[int]) -> None:
        try:
            piece = self.source.read_segment(self.spec.level, row, col)
        except ReadError as error:
            self.failed.update(dict.fromkeys(tiles, str(error)))
            return
        top, left = row * grid.height, col * grid.width
        bottom, right = min(top + grid.height, self.size.height), min(left + grid.width, self.size.width)
        cover = self.spec.cover
        for tile in tiles:
            y, x = int(self.y0[tile]), int(self.x0[tile])
            y0, y1 = max(y, top), min(y + cover, bottom)
            x0, x1 = max(x, left), min(x + cover, right)
            out = self._cover(tile) if self.spec.resampled else self._tile(tile)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = WHITE if piece is None else piece[y0 - top : y1 - top, x0 - left : x1 - left]

    def _read_tile(self, tile: int) -> None:
        region = Region(int(self.y0[tile]), int(self.x0[tile]), self.spec.cover, self.spec.cover)
        try:
            pixels = self.source.read_region(self.spec.level, region)
        except ReadError as error:
            self.failed[tile] = str(error)
            return
        if self.spec.resampled:
            self.covers[tile] = pixels
        else:
            self._tile(tile)[:] = pixels

    def _cover(self, tile: int) -> Pixels:
        """The level's pixels under a tile that will be averaged, (cover, cover, 3), white where nothing was copied yet."""
        with self.lock:
            if tile not in self.covers:
                self.covers[tile] = self.free.take(self.spec.cover, self.spec.cover, 3)
                self.covers[tile][:] = WHITE
            return self.covers[tile]

    def _finish(self, tiles: list[int]) -> None:
        """Average the tiles for which this was the last piece."""
        with self.lock:
            for tile in tiles:
                self.waiting[tile] -= 1
            ready = [(tile, self.covers.pop(tile, None)) for tile in tiles if self.waiting[tile] == 0]
        for tile, pixels in ready:
            if pixels is None:
                continue
            if tile not in self.failed:
                y, x = self.px_y[tile] - self.y0[tile], self.px_x[tile] - self.x0[tile]
                self._tile(tile)[:] = area_average(pixels, float(y), float(x), self.spec.extent, self.spec.tile)
            self.free.give(pixels)


def _piece_area(grid: SegmentGrid | None, spec: ReadSpec) -> int:
    return grid.height * grid.width if grid else spec.cover**2


def _pair_tiles(n: int) -> tuple[Index, Index, Index]:
    """Every tile its own piece: for sources that only read regions."""
    own = np.arange(n, dtype=np.int64)
    return own, np.zeros_like(own), own


def pair_pieces(first: tuple[Index, Index], end: tuple[Index, Index], grid: SegmentGrid, size: Size) -> tuple[Index, Index, Index]:
    """Pieces that tiles need: (p,) piece row, piece column and tile, one entry for each overlap.

    `first` and `end` are the (n,) y and x of the tiles' first pixels and of the pixels past their last, in level pixels.
    Entries run along the shorter side of the tiles' bounding box, so that a tile's pieces come close together.
    """
    (y0, x0), (y1, x1) = first, end
    first_row, last_row = y0 // grid.height, (np.minimum(y1, size.height) - 1) // grid.height
    first_col, last_col = x0 // grid.width, (np.minimum(x1, size.width) - 1) // grid.width
    rows, cols, tiles = [], [], []
    for down in range(int((last_row - first_row).max(initial=-1)) + 1):
        for right in range(int((last_col - first_col).max(initial=-1)) + 1):
            keep = np.flatnonzero((first_row + down <= last_row) & (first_col + right <= last_col))
            rows.append(first_row[keep] + down)
            cols.append(first_col[keep] + right)
            tiles.append(keep)
    row, col, tile = (np.concatenate(a) if a else np.empty(0, np.int64) for a in (rows, cols, tiles))
    tall = np.ptp(y0) > np.ptp(x0)
    order = np.lexsort((tile, col, row) if tall else (tile, row, col))
    return row[order], col[order], tile[order]


def _order_jobs(row: Index, col: Index, tile: Index, n: int, pieces_a_job: int) -> _Jobs:
    """Group the pieces into jobs and find the job that touches each tile first and last."""
    new = np.ones(len(row), np.bool_)
    new[1:] = (row[1:] != row[:-1]) | (col[1:] != col[:-1])
    piece = np.cumsum(new) - 1  # (p,) number of the piece that each pair belongs to
    job = piece // max(1, pieces_a_job)
    first, last = np.zeros(n, np.int64), np.full(n, -1, np.int64)
    np.maximum.at(last, tile, job)
    first[:] = last
    np.minimum.at(first, tile, job)
    slots = np.argsort(last, kind="stable").astype(np.int64)
    starts = np.flatnonzero(new)
    pieces = [(int(row[s]), int(col[s]), t.tolist()) for s, t in zip(starts, np.split(tile, starts[1:]), strict=True)] if len(row) else []
    step = max(1, pieces_a_job)
    return _Jobs([pieces[k : k + step] for k in range(0, len(pieces), step)], slots, last[slots], first[slots])
