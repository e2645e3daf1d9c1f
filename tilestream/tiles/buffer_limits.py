"""What reading a list of tiles holds at once, in bytes: counted from the order of work alone, before a pixel is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.geometry import Size
from tilestream.sources.base import RGB, PixelKind, SegmentGrid
from tilestream.tiles.read_spec import GROUPS_IN_WORK, READ_PIXELS, READ_TILES, ReadSpec, group_pieces, host_group, job_pieces, jobs_ahead
from tilestream.tiles.tile_reader import Index, pair_pieces, pair_tiles

CIRCULATING = 4
"""Batches of a lane that were read and are not given back: two wait, one is on its way to them, one is computed; on a device more are in flight."""


@dataclass(frozen=True)
class OpenTiles:
    """The most that `TileReader` has open at once while it reads a list of tiles."""

    batches: int
    """Batches that some tile of was begun, and that are not taken yet."""
    covers: int
    """Tiles that are averaged of which some piece is there, and some is missing."""


def count_open(spec: ReadSpec, grid: SegmentGrid | None, size: Size, l0_y: Index, l0_x: Index, *, batch: int, threads: int) -> OpenTiles:
    """Follow `TileReader` through its jobs without reading: exact for the worst order in which its threads can end them.

    While job d is waited for, jobs up to d + `jobs_ahead` - 1 were handed over. A batch is open from the first of them that touches one
    of its tiles until the last one is done.
    """
    if len(l0_y) == 0:
        return OpenTiles(0, 0)
    job, tile, count = _jobs(spec, grid, size, l0_y, l0_x)
    last = np.full(len(l0_y), -1, np.int64)
    last[tile] = job  # ascending: the last one stays
    first = last.copy()
    first[tile[::-1]] = job[::-1]
    ahead = jobs_ahead(spec, grid, threads)
    order = np.argsort(last, kind="stable")
    starts = np.arange(0, len(order), batch)
    batches = _most(np.minimum.reduceat(first[order], starts) - ahead + 1, np.maximum.reduceat(last[order], starts) + 1, count)
    covers = _most(first - ahead + 1, last, count) if spec.resampled and grid is not None else 0
    return OpenTiles(batches, covers)


def _jobs(spec: ReadSpec, grid: SegmentGrid | None, size: Size, l0_y: Index, l0_x: Index) -> tuple[Index, Index, int]:
    """(p,) job and tile of every overlap of a piece and a tile in order of reading, and the number of jobs."""
    px_y, px_x = spec.px_origins(l0_y), spec.px_origins(l0_x)
    if grid is None:
        row, col, tile = pair_tiles(len(l0_y))
    else:
        y0, x0 = np.floor(px_y).astype(np.int64), np.floor(px_x).astype(np.int64)
        row, col, tile = pair_pieces((y0, x0), (_end(spec, px_y), _end(spec, px_x)), grid, size)
    new = (np.diff(row, prepend=-1) != 0) | (np.diff(col, prepend=-1) != 0)
    job = (np.cumsum(new) - 1) // job_pieces(spec, grid)
    return job, tile, int(job[-1]) + 1 if len(job) else 0


def _end(spec: ReadSpec, px: NDArray[np.float64]) -> Index:
    return np.ceil(px + spec.extent - 1e-9).astype(np.int64) if spec.resampled else px.astype(np.int64) + spec.tile


def _most(opened: Index, closed: Index, jobs: int) -> int:
    """The most of some things that are open at once, each from job `opened` until job `closed` is done, both included."""
    change = np.zeros(jobs + 3, np.int64)
    np.add.at(change, np.maximum(opened, 0), 1)
    np.add.at(change, closed + 1, -1)
    return int(change.cumsum().max())


def read_batch(batch: int, tile: int, pixel: PixelKind = RGB) -> int:
    """Tiles that reading hands over at once on a CPU: a multiple of the encoder's batch, one of them where tiles are large."""
    wanted = max(1, min(READ_TILES, READ_PIXELS * RGB.bytes // (tile**2 * pixel.bytes)))
    return -(-wanted // batch) * batch


def average_bytes(spec: ReadSpec) -> int:
    """Bytes that a thread takes to average one tile: its rows in float32, their weighted copy, and the same turned; of values also where they are, and which."""
    if not spec.resampled:
        return 0
    rows = 4 * spec.tile * spec.cover * spec.pixel.channels * 4
    return 2 * rows + 3 * spec.cover**2 * spec.pixel.bytes if spec.pixel.bands else rows


def device_group_bytes(grid: SegmentGrid, processes: int) -> int:
    """Bytes of the groups of pieces that one reader for a device has on the host."""
    return GROUPS_IN_WORK * group_pieces(grid, host_group(processes)) * grid.height * grid.width * 3
