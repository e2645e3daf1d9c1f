"""Squares of stored tokens with their places, read from Zarr in bands of rows, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.fitting.metrics import Ints
from tilestream.fitting.training.features import read_rows
from tilestream.store.slide import Slide

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """The good tokens of a square of a slide's grid, m of them."""

    slide: int
    """Number of the slide."""
    rows: Ints
    """(m,) rows in its store."""
    tok_row: Ints
    """(m,) on the slide's grid."""
    tok_col: Ints
    """(m,)"""
    tokens: NDArray[np.floating]
    """(m, d) as stored."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class _Grid:
    """Where a slide's good tokens lie."""

    rows: Ints
    tok_row: Ints
    tok_col: Ints
    vectors: zarr.Array[Any]
    held: NDArray[np.floating] | None = field(default=None)
    """All its vectors, where all slides fit into memory."""

    def read(self, at: Ints) -> NDArray[np.floating]:
        """(m, d) vectors of some of its good tokens, in rising order."""
        return self.held[self.rows[at]] if self.held is not None else read_rows(self.vectors, self.rows[at])


class TokenBlocks:
    """Blocks of the tokens of some slides.

    Order: of `drawn`, as the seed says; of `fixed`, slide by slide, as the grid has them.

    Memory bound: places of all tokens (24 bytes each), and about `memory` bytes of vectors; slides that fit into it together are read once.

    Parameters
    ----------
    slides : sequence of Slide
    side : int
        Tokens a side of a block.
    memory : int
        Bytes for vectors.
    """

    def __init__(self, slides: Sequence[Slide], side: int, memory: int) -> None:
        self.side, self.memory = side, memory
        self.grids = [_grid(slide) for slide in slides]
        self.dim = int(self.grids[0].vectors.shape[1])
        whole = sum(grid.vectors.shape[0] * self.dim * grid.vectors.dtype.itemsize for grid in self.grids)
        if whole <= memory // 2:
            for grid in self.grids:
                grid.held = np.asarray(grid.vectors[:])

    @property
    def tokens(self) -> int:
        """Good tokens of all slides."""
        return sum(len(grid.rows) for grid in self.grids)

    def drawn(self, seed: int, number: int) -> Iterator[Block]:
        """One pass over all tokens in blocks with borders and an order of their own; what is shuffled together is what fits into memory."""
        chance = np.random.default_rng([seed, number])
        bands = [(k, start) for k, grid in enumerate(self.grids) for start in self._starts(grid, self._offset(grid.tok_row, chance))]
        waiting: list[Block] = []
        held = 0
        for n in chance.permutation(len(bands)).tolist():
            k, start = bands[n]
            for block in self._band(k, start, self._offset(self.grids[k].tok_col, chance)):
                waiting.append(block)
                held += block.tokens.nbytes
            if held > self.memory // 4:
                yield from _shuffled(waiting, chance)
                waiting, held = [], 0
        yield from _shuffled(waiting, chance)

    def fixed(self) -> Iterator[Block]:
        """All tokens in blocks that begin at multiples of the side."""
        for k, grid in enumerate(self.grids):
            for start in self._starts(grid, 0):
                yield from self._band(k, start, 0)

    def _offset(self, places: Ints, chance: np.random.Generator) -> int:
        """Where blocks are cut along an axis: anywhere, but a slide that fits into one block is not cut."""
        drawn = int(chance.integers(self.side))
        if len(places) and int(places.max() - places.min()) < self.side:
            return int(-places.min() % self.side)
        return drawn

    def _starts(self, grid: _Grid, offset: int) -> list[int]:
        """First rows of the bands that hold tokens."""
        if not len(grid.tok_row):
            return []
        found: list[int] = (np.unique((grid.tok_row + offset) // self.side) * self.side - offset).tolist()
        return found

    def _band(self, k: int, start: int, offset: int) -> Iterator[Block]:
        """The blocks of one band of rows."""
        grid = self.grids[k]
        first, end = np.searchsorted(grid.tok_row, [start, start + self.side]).tolist()
        at = np.arange(first, end)
        tokens = grid.read(at)
        number = (grid.tok_col[at] + offset) // self.side
        for n in np.unique(number).tolist():
            own = np.flatnonzero(number == n)
            yield Block(k, grid.rows[at[own]], grid.tok_row[at[own]], grid.tok_col[at[own]], tokens[own])


def _grid(slide: Slide) -> _Grid:
    row, col = (slide.read_column(name).astype(np.int64) for name in ("row", "col"))
    good = np.flatnonzero(slide.read_good())
    order = good[np.argsort(row[good], kind="stable")]
    assert bool((order[1:] > order[:-1]).all()), "tiles are numbered row by row"
    return _Grid(order, row[order], col[order], slide.vectors("tiles"))


def _shuffled(blocks: list[Block], chance: np.random.Generator) -> Iterator[Block]:
    for n in chance.permutation(len(blocks)).tolist():
        yield blocks[n]
