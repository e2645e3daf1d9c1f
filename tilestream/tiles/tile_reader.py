"""Tile batches from a source: each piece of the file is decoded once and copied into the tiles that it overlaps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilestream.buffers import PixelBuffers
from tilestream.errors import ReadError
from tilestream.geometry import Region, Size
from tilestream.sources.base import Pixels, SegmentGrid, Source
from tilestream.store.layout import DECODE_ERROR
from tilestream.tiles.read_spec import ReadSpec, job_pieces, jobs_ahead
from tilestream.tiles.resample import area_average

LINE_BYTES = 64 * 1024**2
"""Of the tiles that are open, about, where a list is read row by row, the order in which most files hold their tiles."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Failure:
    """Why a tile has no pixels."""

    words: str
    status: int = DECODE_ERROR
    """Its code in the store."""


@dataclass(frozen=True)
class TileBatch:
    """Tiles that are ready, in the order of reading."""

    index: Index
    """(n,) place of each tile in the list that was asked for."""
    pixels: Pixels
    """(n, tile, tile, 3) uint8 RGB, or (n, tile, tile, bands) float32 in which what is not there is 0; undefined where the tile failed."""
    failed: dict[int, Failure] = field(default_factory=dict)
    """Why reading failed, by place in the list that was asked for."""
    last: bool = True
    """Whether the buffer that the pixels lie in is free once these are done with."""

    def parts(self, count: int) -> Iterator[TileBatch]:
        """The same tiles, so many at a time."""
        for start in range(0, len(self.index), count):
            index = self.index[start : start + count]
            failed = {k: self.failed[k] for k in index.tolist() if k in self.failed}
            yield TileBatch(index, self.pixels[start : start + count], failed, start + count >= len(self.index))


@dataclass(frozen=True)
class Piece:
    """One piece of the file and what becomes of it."""

    row: int
    col: int
    direct: int
    """A tile that is this piece exactly, so that it may be decoded in place; -1 where there is none."""
    copies: list[tuple[int, ...]]
    """For each tile: its place in the list; first and last row of the tile, then of the piece; first and last column of both."""

    @property
    def tiles(self) -> list[int]:
        """Tiles that overlap the piece."""
        return [copy[0] for copy in self.copies]


@dataclass(frozen=True)
class _Jobs:
    """The order of work: runs of pieces, and for each tile the run that completes it."""

    pieces: list[list[Piece]]
    """For each job its pieces."""
    slots: Index
    """(n,) tiles in order of completion."""
    last_job: Index
    """(n,) job that completes the tile in each slot; -1 where no piece is needed."""
    first_job: Index
    """(n,) first job that touches the tile in each slot."""


class TileReader:
    """Reads lists of tiles of one image.

    A piece that is exactly one tile is decoded into the batch; any other into a buffer of its thread, from where it is copied.

    Order
    -----
    Batches come in a fixed order that depends on the tile list alone, not on timing: pieces are visited row by row, which is the order of most
    files, or down the columns where the list is so much wider than high that more than `LINE_BYTES` would be open.

    Memory bound
    ------------
    Open tiles are those that overlap the pieces of two neighbouring rows, or columns, plus the jobs
    ahead (2 a thread): `buffer_limits.count_open` gives the count. Each costs `tile²` pixels, and `cover²` more where it is averaged.
    """

    def __init__(
        self, source: Source, spec: ReadSpec, *, pool: Executor, threads: int, batch: int, buffers: PixelBuffers | None = None
    ) -> None:
        self.source = source
        self.spec = spec
        self.buffers = buffers or PixelBuffers()
        self.pool = pool
        self.ahead = jobs_ahead(spec, source.segment_grid(spec.level), threads)
        self.batch = batch

    def read(self, l0_y: Index, l0_x: Index) -> Iterator[TileBatch]:
        """Batches of the tiles whose level-0 top-left corners are (n,) `l0_y`, `l0_x`. A tile that fails is in `failed`."""
        if len(l0_y) == 0:
            return
        job = _Shard(self.source, self.spec, (self.spec.px_origins(l0_y), self.spec.px_origins(l0_x)), self.batch, self.buffers)
        with self.source.ahead(self.spec.level, ((piece.row, piece.col) for pieces in job.jobs.pieces for piece in pieces)):
            yield from self._read(job)

    def _read(self, job: _Shard) -> Iterator[TileBatch]:
        """The batches of a list, decoded by the pool's threads a bounded number of jobs ahead."""
        pending: deque[Future[None]] = deque()
        submitted = done = 0
        try:
            for number, last in enumerate(job.last_job_of_batch):
                while done <= last:
                    while submitted < len(job.jobs.pieces) and len(pending) < self.ahead:
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
        pairs = self._pairs()
        self.jobs = _order_jobs(self._pieces(*pairs), len(px_y), job_pieces(spec, self.grid))
        slot_of = np.empty(len(px_y), np.int64)
        slot_of[self.jobs.slots] = np.arange(len(px_y))
        self.batch_of, self.place_of = (slot_of // batch).tolist(), (slot_of % batch).tolist()
        overhang = (self.y0 + spec.cover > self.size.height) | (self.x0 + spec.cover > self.size.width) | (self.y0 < 0) | (self.x0 < 0)
        self.overhangs = overhang[self.jobs.slots] & (not spec.resampled)  # in order of slots
        starts = np.arange(0, len(px_y), batch)
        self.last_job_of_batch = np.maximum.reduceat(self.jobs.last_job, starts).tolist()
        first_jobs = np.minimum.reduceat(self.jobs.first_job, starts)
        self.to_open = deque(sorted(zip(first_jobs.tolist(), range(len(starts)), strict=True)))
        self.waiting = np.bincount(pairs[2], minlength=len(px_y)).tolist()  # pieces that a tile still waits for
        self.buffers: dict[int, Pixels] = {}
        self.covers: dict[int, Pixels] = {}
        self.failed: dict[int, Failure] = {}
        self.lock = threading.Lock()

    def _pairs(self) -> tuple[Index, Index, Index]:
        """(p,) row, column and tile of every overlap of a piece and a tile."""
        if self.grid is None:
            return pair_tiles(len(self.px_y))
        spec = self.spec
        ends = [
            np.ceil(px + spec.extent - 1e-9).astype(np.int64) if spec.resampled else px.astype(np.int64) + spec.tile
            for px in (self.px_y, self.px_x)
        ]
        return pair_pieces((self.y0, self.x0), (ends[0], ends[1]), self.grid, self.size)

    def _pieces(self, row: Index, col: Index, tile: Index) -> list[Piece]:
        """The pieces in order of reading, from their overlaps in that order."""
        if self.grid is None:
            return [Piece(k, 0, -1, [(k,)]) for k in tile.tolist()]
        grid, cover = self.grid, self.spec.cover
        bounds = []
        for at, first, side, length in ((row, self.y0, grid.height, self.size.height), (col, self.x0, grid.width, self.size.width)):
            start, begin = at * side, first[tile]
            low = np.maximum(begin, start)
            high = np.minimum(np.minimum(begin + cover, start + side), length)
            bounds += [low - begin, high - begin, low - start, high - start]
        new = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(col, prepend=-1) != 0))
        exact = (bounds[0] == 0) & (bounds[2] == 0) & (bounds[4] == 0) & (bounds[6] == 0)
        exact &= (bounds[1] == grid.height) & (bounds[5] == grid.width)
        if self.spec.resampled or (cover, cover) != (grid.height, grid.width):
            exact[:] = False
        copies = list(zip(tile.tolist(), *(each.tolist() for each in bounds), strict=True))
        direct = np.maximum.reduceat(np.where(exact, tile, -1), new) if len(new) else new
        starts = new.tolist()
        spans = zip(row[new].tolist(), col[new].tolist(), direct.tolist(), starts, [*starts[1:], len(tile)], strict=True)
        return [Piece(r, c, exactly, copies[first:end]) for r, c, exactly, first, end in spans]

    def open_batches(self, job: int) -> None:
        """Allocate the batches that `job`, or one before it, is the first to touch."""
        while self.to_open and self.to_open[0][0] <= job:
            number = self.to_open.popleft()[1]
            start = number * self.batch
            count = min(self.batch, len(self.px_y) - start)
            pixels = self.buffers[number] = self._take(self.batch, self.spec.tile, self.spec.tile)[:count]
            pixels[self.overhangs[start : start + count]] = self.spec.pixel.fill

    def _take(self, *shape: int) -> Pixels:
        """A buffer for pixels of this image."""
        kind = self.spec.pixel
        return self.free.take(*shape, kind.bytes).view(kind.dtype)

    def _tile(self, tile: int) -> Pixels:
        """The output pixels of a tile, (tile, tile, channels), a view into its batch."""
        view: Pixels = self.buffers[self.batch_of[tile]][self.place_of[tile]]
        return view

    def take(self, number: int) -> TileBatch:
        """A finished batch, which the shard forgets."""
        index = self.jobs.slots[number * self.batch : (number + 1) * self.batch]
        pixels = self.buffers.pop(number)
        if self.spec.pixel.bands:
            fill_absent(pixels)
        failed = {k: self.failed[k] for k in index.tolist() if k in self.failed} if self.failed else {}
        return TileBatch(index, pixels, failed)

    def run(self, job: int) -> None:
        """Decode the pieces of one job and copy them into the tiles that they overlap."""
        for piece in self.jobs.pieces[job]:
            if self.grid is None:
                self._read_tile(piece.row)
                continue
            self._scatter(piece)
            if self.spec.resampled:
                self._finish(piece.tiles)

    def _scatter(self, piece: Piece) -> None:
        place = None if piece.direct < 0 else self._tile(piece.direct)
        try:
            pixels = self.source.read_segment(self.spec.level, piece.row, piece.col, place)
        except ReadError as error:
            self.failed.update(dict.fromkeys(piece.tiles, Failure(str(error))))
            return
        resampled, buffers, batch_of, place_of = self.spec.resampled, self.buffers, self.batch_of, self.place_of
        for tile, y0, y1, from_y0, from_y1, x0, x1, from_x0, from_x1 in piece.copies:
            out = self._cover(tile) if resampled else buffers[batch_of[tile]][place_of[tile]]
            if pixels is None:
                out[y0:y1, x0:x1] = self.spec.pixel.fill
            elif pixels is not place or tile != piece.direct:
                out[y0:y1, x0:x1] = pixels[from_y0:from_y1, from_x0:from_x1]

    def _read_tile(self, tile: int) -> None:
        region = Region(int(self.y0[tile]), int(self.x0[tile]), self.spec.cover, self.spec.cover)
        try:
            pixels = self.source.read_region(self.spec.level, region)
        except ReadError as error:
            self.failed[tile] = Failure(str(error))
            return
        self._tile(tile)[:] = self._average(tile, pixels) if self.spec.resampled else pixels

    def _average(self, tile: int, cover: Pixels) -> Pixels:
        """The (tile, tile, channels) average of the level's pixels under a tile, (cover, cover, channels)."""
        y, x = self.px_y[tile] - self.y0[tile], self.px_x[tile] - self.x0[tile]
        return area_average(cover, float(y), float(x), self.spec.extent, self.spec.tile)

    def _cover(self, tile: int) -> Pixels:
        """The level's pixels under a tile that will be averaged, (cover, cover, channels), nothing where none were copied yet."""
        with self.lock:
            if tile not in self.covers:
                self.covers[tile] = self._take(self.spec.cover, self.spec.cover)
                self.covers[tile][:] = self.spec.pixel.fill
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
                self._tile(tile)[:] = self._average(tile, pixels)
            self.free.give(pixels)


def fill_absent(tiles: Pixels) -> None:
    """Make 0 of what is no number in (n, tile, tile, bands) values, in place: tile by tile, as most have none; nan_to_num takes ten times as long."""
    for tile in tiles:
        there = np.isfinite(tile)
        if not there.all():
            tile[~there] = 0


def pair_tiles(n: int) -> tuple[Index, Index, Index]:
    """Every tile its own piece: for sources that only read regions."""
    own = np.arange(n, dtype=np.int64)
    return own, np.zeros_like(own), own


def pair_pieces(first: tuple[Index, Index], end: tuple[Index, Index], grid: SegmentGrid, size: Size) -> tuple[Index, Index, Index]:
    """Pieces that tiles need: (p,) piece row, piece column and tile, one entry for each overlap.

    `first` and `end` are the (n,) y and x of the tiles' first pixels and of the pixels past their last, in level pixels; they may lie outside the image.
    Entries run row by row or down the columns, as `TileReader` says.
    """
    (y0, x0), (y1, x1) = first, end
    first_row, last_row = np.maximum(y0, 0) // grid.height, (np.minimum(y1, size.height) - 1) // grid.height
    first_col, last_col = np.maximum(x0, 0) // grid.width, (np.minimum(x1, size.width) - 1) // grid.width
    rows, cols, tiles = [], [], []
    for down in range(int((last_row - first_row).max(initial=-1)) + 1):
        for right in range(int((last_col - first_col).max(initial=-1)) + 1):
            keep = np.flatnonzero((first_row + down <= last_row) & (first_col + right <= last_col))
            rows.append(first_row[keep] + down)
            cols.append(first_col[keep] + right)
            tiles.append(keep)
    row, col, tile = (np.concatenate(a) if a else np.empty(0, np.int64) for a in (rows, cols, tiles))
    order = np.lexsort((tile, col, row) if _goes_by_rows(y0, x0, y1, grid) else (tile, row, col))
    return row[order], col[order], tile[order]


def _goes_by_rows(y0: Index, x0: Index, y1: Index, grid: SegmentGrid) -> bool:
    """Whether tiles are read row by row: where they are no wider than high, or few enough are open."""
    side, height = int((y1 - y0).max(initial=0)), int(np.ptp(y0)) if len(y0) else 0
    opened = len(y0) * min(1.0, (2 * grid.height + side) / max(1, height + side))
    return height >= int(np.ptp(x0)) or opened * side**2 * 3 <= LINE_BYTES


def _order_jobs(pieces: list[Piece], n: int, pieces_a_job: int) -> _Jobs:
    """Group the pieces into jobs and find the job that touches each of n tiles first and last."""
    step = pieces_a_job
    tile = np.array([k for piece in pieces for k in piece.tiles], np.int64)
    job = np.repeat(np.arange(len(pieces)) // step, [len(piece.copies) for piece in pieces])
    last = np.full(n, -1, np.int64)
    np.maximum.at(last, tile, job)
    first = last.copy()
    np.minimum.at(first, tile, job)
    slots = np.argsort(last, kind="stable").astype(np.int64)
    return _Jobs([pieces[k : k + step] for k in range(0, len(pieces), step)], slots, last[slots], first[slots])
