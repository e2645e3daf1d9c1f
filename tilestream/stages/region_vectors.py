"""Vectors of windows: what the tokens of a square of the grid come to, keyed by the window's place; and of windows of windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.config.schema import Windows
from tilestream.geometry import TileGrid
from tilestream.models.context_streaming import TokenBand
from tilestream.models.plain_pools import Pool
from tilestream.models.pooling import make_pool
from tilestream.stages.pinning import load_pinned
from tilestream.stages.worker_settings import Digests
from tilestream.store.layout import WindowGrid
from tilestream.store.slide_store import SlideStore

Rows = NDArray[np.float32]


def window_grids(windows: Windows, grid: TileGrid, tokens_a_side: int, dim: int) -> list[WindowGrid]:
    """The windows of each size over a slide; the smallest first."""
    rows, cols, step = grid.rows * tokens_a_side, grid.cols * tokens_a_side, grid.stride * grid.scale / tokens_a_side
    found = []
    for side in windows.sides:
        pool = window_pool(windows, dim)
        dim = len(pool.result(pool.identity()))
        found.append(WindowGrid(side, -(-rows // side), -(-cols // side), dim, side * step))
    return found


def window_pool(windows: Windows, dim: int, pinned: Digests = ()) -> Pool:
    """The rule that makes one vector of a window's."""
    return make_pool(windows.pool, dim, load_pinned(windows.weights, "windows.weights", pinned) if windows.weights is not None else None)


class WindowWriter:
    """Window vectors of the smallest size into a slide's store, from mixed tokens band by band; rows that are committed stay."""

    def __init__(self, windows: Windows, store: SlideStore, pinned: Digests = ()) -> None:
        self._store = store
        self._path = f"windows/{windows.sides[0]}"
        self._stage = f"windows{windows.sides[0]}"
        array = store.array(self._path)
        done = store.ledger(self._stage)
        first = next((row for row in range(array.shape[0]) if row not in done), array.shape[0])
        pool = window_pool(windows, store.layout.dim, pinned)
        self._vectors = WindowVectors(windows.sides[0], array.shape[1], pool, self._write, first, array.shape[0])
        self.add, self.finish = self._vectors.add, self._vectors.finish

    @property
    def open_row(self) -> int | None:
        """The first token row that is still wanted; None where all rows are committed."""
        return None if self._vectors.next == self._vectors.end else self._vectors.next * self._vectors.side

    def _write(self, row: int, values: Rows) -> None:
        array = self._store.array(self._path)
        self._store.write_rows(self._stage, row, slice(row, row + 1), {self._path: values[None].astype(array.dtype)}, {})


def write_larger_windows(windows: Windows, store: SlideStore, pinned: Digests = ()) -> None:
    """The windows of windows, size after size."""
    for small, large in pairwise(windows.sides):
        source, stage = store.array(f"windows/{small}"), f"windows{large}"
        rows = (np.asarray(source[row], np.float32) for row in range(source.shape[0]))
        pool = window_pool(windows, source.shape[2], pinned)
        for row, values in enumerate(pool_rows(rows, large // small, pool)):
            store.write_rows(stage, row, slice(row, row + 1), {f"windows/{large}": values[None].astype(source.dtype)}, {})


class WindowVectors:
    """Vectors of the windows of a token grid, given out a row of windows at a time.

    Order: rows of windows from top to bottom, every one of them.

    Memory bound: the tokens of the rows of windows that the band in work touches.

    Parameters
    ----------
    side : int
        Side of a window, tokens; windows begin at multiples of it.
    cols : int
        Windows across the grid.
    pool : Pool
        What makes one vector of a window's tokens.
    write : callable
        Given the row of windows and (cols, d) float32, NaN where a window has no token.
    first, end : int
        The rows of windows that are wanted, the end excluded.
    """

    def __init__(self, side: int, cols: int, pool: Pool, write: Callable[[int, Rows], None], first: int, end: int) -> None:
        self.side, self.cols, self.pool, self.write, self.next, self.end = side, cols, pool, write, first, end
        self._held: list[TokenBand] = []

    def add(self, band: TokenBand) -> None:
        """Take the tokens of whole rows, then write the rows of windows that are complete."""
        start = int(torch.searchsorted(band.tok_row, self.next * self.side))
        self._held.append(TokenBand(band.tokens[start:].cpu(), band.tok_row[start:], band.tok_col[start:], band.upto))
        complete = min(band.upto // self.side, self.end)
        if complete > self.next:
            self._give(complete)

    def finish(self) -> None:
        """Write what is left; no more tokens come."""
        self._give(self.end)

    def _give(self, end: int) -> None:
        """Write the rows of windows before `end`, and keep the tokens of later ones."""
        tokens, tok_row, tok_col = (
            torch.cat([getattr(band, name) for band in self._held]) if self._held else torch.empty(0)
            for name in ("tokens", "tok_row", "tok_col")
        )
        while self.next < end:
            low, high = (int(torch.searchsorted(tok_row, row * self.side)) for row in (self.next, self.next + 1))
            values = pool_cells(self.pool, tokens[low:high], tok_col[low:high] // self.side, self.cols)
            self.write(self.next, values)
            self.next += 1
        rest = int(torch.searchsorted(tok_row, end * self.side))
        self._held = [TokenBand(tokens[rest:], tok_row[rest:], tok_col[rest:], end * self.side)] if rest < len(tokens) else []


def pool_cells(pool: Pool, tokens: Tensor, cell: Tensor, cells: int) -> Rows:
    """(cells, d) float32: the vector of the tokens (n, dim) of each cell (n,), NaN where there are none.

    Tokens are taken in the order of their cells, and within one as they come.
    """
    empty = pool.result(pool.identity()).numpy()
    out = np.full((cells, len(empty)), np.nan, np.float32)
    if len(tokens):
        order = torch.argsort(cell, stable=True)
        found, counts = torch.unique_consecutive(cell[order], return_counts=True)
        for where, part in zip(found.tolist(), torch.split(tokens[order], counts.tolist()), strict=True):
            out[where] = pool.result(pool.state(part)).numpy()
    return out


def pool_rows(rows: Iterable[Rows], factor: int, pool: Pool) -> Iterator[Rows]:
    """Rows (cols, d) of windows to rows of windows `factor` times as large: each is the pool of those in it that are not empty."""
    group: list[Rows] = []
    for row in rows:
        group.append(row)
        if len(group) == factor:
            yield _pool_group(group, factor, pool)
            group = []
    if group:
        yield _pool_group(group, factor, pool)


def _pool_group(group: list[Rows], factor: int, pool: Pool) -> Rows:
    cells = -(-group[0].shape[0] // factor)
    values = np.concatenate(group)
    cell = np.tile(np.arange(group[0].shape[0]) // factor, len(group))
    there = np.isfinite(values).all(axis=1)
    return pool_cells(pool, torch.from_numpy(values[there]), torch.from_numpy(cell[there]), cells)
