"""Shapes of a slide's output, and what is known of its tiles before a pixel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATUSES = ("ok", "padded", "decode_error", "timeout", "nonfinite")
"""What became of a tile; its place here is the code in the store."""

OK, PADDED, DECODE_ERROR, TIMEOUT, NONFINITE = range(5)


@dataclass(frozen=True)
class Layout:
    """Shapes of the arrays of one slide."""

    tiles: int
    """Rows of every per-tile array."""
    dim: int
    """Columns of X."""
    shard_tiles: int
    """Rows of one Zarr shard: the unit of work, of commit and of resume."""
    dtype: str
    """float16 or float32."""
    context_dim: int = 0
    """Columns of obsm/context; 0 where none is configured."""
    tokens: int = 0
    """Tokens of a tile that are stored; 0 where none are."""

    @property
    def shards(self) -> int:
        """Number of shards, the last one possibly short."""
        return -(-self.tiles // self.shard_tiles)

    @property
    def chunk_rows(self) -> int:
        """The divisor of `shard_tiles` that is nearest to 256 rows."""
        divisors = [k for k in range(1, self.shard_tiles + 1) if self.shard_tiles % k == 0]
        return min(divisors, key=lambda k: (abs(k - 256), k))

    def rows(self, shard: int) -> slice:
        """The rows of a shard."""
        return slice(shard * self.shard_tiles, min((shard + 1) * self.shard_tiles, self.tiles))

    @property
    def shard_bytes(self) -> int:
        """What a shard takes while it is filled and written: its values, and chunk by chunk the encoded object and its checksum."""
        rows, columns = min(self.shard_tiles, self.tiles), self.dim + self.tokens * self.dim
        return rows * columns * np.dtype(self.dtype).itemsize * 4

    @property
    def bytes(self) -> int:
        """Uncompressed size of the embeddings and what is stored beside them, in bytes."""
        item = np.dtype(self.dtype).itemsize
        return self.tiles * ((self.dim + self.context_dim + self.tokens * self.dim) * item + 6 * 8 + 8)


@dataclass(frozen=True)
class TileColumns:
    """What is known of the tiles before a pixel is read; (n,) each, n rows of the store."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    y: NDArray[np.int64]
    """Level-0 px of the top-left."""
    x: NDArray[np.int64]
    tissue: NDArray[np.float32]
    """Fraction of the tile that is tissue."""
    l0_extent: float
    """Side of a tile in level-0 px."""


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one size over the token grid of a slide."""

    side: int
    """Side of a window, tokens."""
    rows: int
    cols: int
    dim: int
    """Features of a window's vector."""
    l0_side: float
    """Side of a window in level-0 px."""


def tile_names(slide: str, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64]) -> list[str]:
    """(n,) names of tiles that no other tile of a cohort has: `<slide id>_<row>_<col>`."""
    return [f"{slide}_{row}_{col}" for row, col in zip(tile_row.tolist(), tile_col.tolist(), strict=True)]


def nothing_kept(source: Mapping[str, Any]) -> str:
    """What is said of an image of which no tile was kept, from what its store says of it: on a map there is no tissue."""
    return "no tile holds anything" if source.get("geo") else "no tissue found"
