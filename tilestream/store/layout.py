"""Shapes of a slide's output, and what is known of its tiles before a pixel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.config.restart import stage_called

BLOCK_ROWS = 2048
"""Rows of a block, in which rows are read that are more than one holds at once."""

BLOCKS_AHEAD = 4
"""Blocks that are read while the caller works on one."""

STATUSES = ("ok", "padded", "decode_error", "timeout", "nonfinite")
"""What became of a tile; its place here is the code in the store."""

OK, PADDED, DECODE_ERROR, TIMEOUT, NONFINITE = range(5)

TILES, SLIDE = "tables/tiles", "tables/slide"


def kind_of(stage: str) -> str:
    """The stage of which `stage` is a part: `windows16` is one of windows."""
    return "windows" if stage.startswith("windows") else stage


def context_place(stage: str) -> str:
    """The array (n, d) of a context."""
    return f"{TILES}/obsm/{stage}"


def pool_places(stage: str) -> tuple[str, str, str]:
    """The array (1, d) of a pool, that of the shares of tiles in it, and that of the tiles' tokens before they become one."""
    _, _, name = stage.partition("-")
    shares, tokens = (f"{TILES}/obsm/{stage_called(what, name or None)}" for what in ("attention", "tokens"))
    return (f"{SLIDE}/obsm/{stage}" if name else f"{SLIDE}/X"), shares, tokens


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
    if source.get("geo"):
        return "no tile holds anything"
    return "no tile holds enough tissue" if source.get("tissue_found") else "no tissue found"


VECTORS = {"tiles": f"{TILES}/X", "context": context_place("context"), "slide": pool_places("pool")[0], "tokens": pool_places("pool")[2]}
"""Where a store keeps the vectors that there may be."""


def vectors_place(what: str) -> str | None:
    """Where vectors lie, those of contexts and pools under names among them (`context-wide`, `slide-wide`, `tokens-wide`); None for what is no such thing."""
    kind, dash, name = what.partition("-")
    if dash and kind in ("context", "slide", "tokens"):
        return context_place(what) if kind == "context" else pool_places(f"pool-{name}")[0 if kind == "slide" else 2]
    return VECTORS.get(what)


@dataclass(frozen=True)
class Rows:
    """Consecutive tiles of a slide, m of them."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    y: NDArray[np.int64]
    """(m,) level-0 px of the top-left."""
    x: NDArray[np.int64]
    tissue: NDArray[np.float32]
    """(m,) fraction of the tile that is tissue; NaN where it was never looked for."""
    status: NDArray[np.int8]
    """(m,) code in `STATUSES`; -1 where the tile was never embedded."""
    vectors: NDArray[np.float32]
    """(m, d) embeddings or context; NaN in the rows of tiles that failed."""

    @property
    def good(self) -> NDArray[np.bool_]:
        """(m,) whether a tile has an embedding."""
        return is_good(self.status)

    @property
    def status_names(self) -> list[str]:
        """(m,) status of each tile in words; "" where it was never embedded."""
        return [STATUSES[code] if code >= 0 else "" for code in self.status.tolist()]


def is_good(status: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(m,) whether tiles of these status codes have embeddings."""
    good: NDArray[np.bool_] = (status == OK) | (status == PADDED)
    return good
