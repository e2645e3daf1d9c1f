"""Tiles and tokens of one slide: which token lies where, and what the tokens of a tile come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.errors import ConfigError
from tilestream.geometry import TileGrid
from tilestream.models.context_streaming import TokenBand

Index = NDArray[np.int64]


def tokens_a_side(tokens: int, grid: TileGrid) -> int:
    """Tokens along one side of a tile; 1 for encoders that give one vector.

    Raises
    ------
    ConfigError
        The tokens are no square grid, or tiles overlap or leave gaps, so that tokens have no place on one absolute grid.
    """
    if tokens <= 1:
        return 1
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConfigError(
            f"context: the encoder gives {tokens} tokens a tile, which is no square grid. Use an encoder without extra tokens."
        )
    if grid.stride != grid.tile:
        raise ConfigError(
            f"tiles.stride: {grid.stride}, but a context over patch tokens needs tiles that meet: leave it out or set it to {grid.tile}."
        )
    return side


@dataclass(frozen=True)
class TokenGrid:
    """The kept tiles of a slide, row-major, and the token grid that they cut out."""

    grid: TileGrid
    tile_row: Index
    """(n,) ascending."""
    tile_col: Index
    """(n,) ascending within a row."""
    side: int
    """Tokens along a side of a tile."""

    @property
    def width(self) -> int:
        """Tokens across the image."""
        return self.grid.cols * self.side

    def tiles_between(self, first_row: int, end_row: int) -> slice:
        """The tiles of tile rows first_row to end_row, the end excluded."""
        low, high = np.searchsorted(self.tile_row, [first_row, end_row]).tolist()
        return slice(low, high)

    def band(self, tiles: slice, values: NDArray[np.float32], good: NDArray[np.bool_], upto: int) -> TokenBand:
        """The tokens of whole tile rows in row-major order; those of failed tiles and of the white border are absent.

        `values` is (m, dim), or (m, side * side, dim) with tokens of a tile row-major; `good` (m,) says which tiles did not fail.
        """
        dim = values.shape[-1]
        row, col = self.tile_row[tiles][good], self.tile_col[tiles][good]
        within = np.arange(self.side * self.side)
        tok_row = (row[:, None] * self.side + within // self.side).ravel()
        tok_col = (col[:, None] * self.side + within % self.side).ravel()
        keep = np.flatnonzero(self._inside(tok_row, tok_col))
        order = keep[np.lexsort((tok_col[keep], tok_row[keep]))]
        tokens = np.ascontiguousarray(values[good]).reshape(-1, dim)[order]
        return TokenBand(torch.from_numpy(tokens), torch.from_numpy(tok_row[order]), torch.from_numpy(tok_col[order]), upto)

    def _inside(self, tok_row: Index, tok_col: Index) -> NDArray[np.bool_]:
        """Which tokens start inside the image; those of the white border are absent, not zero."""
        step = self.grid.stride * self.grid.scale / self.side
        y0, x0 = self.grid.l0_offset
        return (tok_row * step + y0 < self.grid.l0_size.height) & (tok_col * step + x0 < self.grid.l0_size.width)

    def owners(self, tok_row: Index, tok_col: Index) -> Index:
        """(n,) tile that each token belongs to."""
        key = self.tile_row * self.grid.cols + self.tile_col
        return np.searchsorted(key, tok_row // self.side * self.grid.cols + tok_col // self.side)


class TileMeans:
    """Means of the tokens of each tile, given out by shard as soon as no token of it can come any more.

    Sums are float64 and taken token row by token row, so that they have the same bits however rows are cut into bands.

    Memory bound: the sums of the shards that the band in work and the rows before it have touched.

    Parameters
    ----------
    tokens : TokenGrid
    shard_tiles : int
        Tiles of a shard.
    dim : int
        Channels of a token.
    write : callable
        Given the number of a shard and (rows, dim) float32, NaN where a tile has no token; called in order of shards.
    first, end : int
        The shards that are wanted, the end excluded.
    """

    def __init__(
        self, tokens: TokenGrid, shard_tiles: int, dim: int, write: Callable[[int, NDArray[np.float32]], None], first: int, end: int
    ) -> None:
        self.tokens, self.shard_tiles, self.dim, self.write = tokens, shard_tiles, dim, write
        self.next = first
        self.end = end
        self._open: dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}

    def add(self, band: TokenBand) -> None:
        """Add the tokens of whole rows, then write the shards that are complete."""
        rows = band.tok_row.numpy()
        values: NDArray[Any] = band.tokens.float().cpu().numpy()
        owner = self.tokens.owners(rows, band.tok_col.numpy())
        cuts = np.flatnonzero(np.diff(rows, prepend=-1)) if len(rows) else rows
        for start, end in zip(cuts.tolist(), [*cuts[1:].tolist(), len(rows)], strict=True) if len(rows) else ():
            self._add_row(owner[start:end], values[start:end])
        while self.next < self.end and band.upto >= (self._last_row(self.next) + 1) * self.tokens.side:
            self._give(self.next)

    def finish(self) -> None:
        """Write what is left; no more tokens come."""
        while self.next < self.end:
            self._give(self.next)

    def _add_row(self, owner: Index, values: NDArray[Any]) -> None:
        """Add one token row, whose tokens lie tile by tile."""
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        sums = np.add.reduceat(values.astype(np.float64), starts, axis=0)
        tiles, counts = owner[starts], np.diff(starts, append=len(owner))
        for shard in np.unique(tiles // self.shard_tiles).tolist():
            if not self.next <= shard < self.end:
                continue
            total, count = self._sums(shard)
            mine = tiles // self.shard_tiles == shard
            total[tiles[mine] - shard * self.shard_tiles] += sums[mine]
            count[tiles[mine] - shard * self.shard_tiles] += counts[mine]

    def _sums(self, shard: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if shard not in self._open:
            rows = min(self.shard_tiles, len(self.tokens.tile_row) - shard * self.shard_tiles)
            self._open[shard] = np.zeros((rows, self.dim)), np.zeros(rows, np.int64)
        return self._open[shard]

    def _give(self, shard: int) -> None:
        total, count = self._sums(shard)
        del self._open[shard]
        means = np.full(total.shape, np.nan, np.float32)
        there = count > 0
        means[there] = total[there] / count[there, None]
        self.next = shard + 1
        self.write(shard, means)

    def _last_row(self, shard: int) -> int:
        last = min((shard + 1) * self.shard_tiles, len(self.tokens.tile_row)) - 1
        return int(self.tokens.tile_row[last])
