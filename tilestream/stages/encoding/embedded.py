"""What goes through an encoder with a list of tiles, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.tiles.tile_reader import Failure


@dataclass(frozen=True)
class TileList:
    """What is to be known of a list of tiles beside where they are."""

    whose: str = "tiles"
    """What an error calls them."""
    first_row: int = 0
    """Row of the first one in the output."""
    compiled: bool = False
    """Whether they go through the compiled encoder, where they go through a CUDA device."""
    rows: NDArray[np.int64] | None = None
    """(n,) which rows from there on they are, where some are left out."""

    def rows_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows in the output of the tiles at places of the list."""
        return self.first_row + (index if self.rows is None else self.rows[index])


ALL_TILES = TileList()


@dataclass(frozen=True)
class Embedded:
    """The encoder's results for one batch."""

    index: NDArray[np.int64]
    """(n,) place of each tile in the list that was asked for."""
    out: NDArray[np.float32]
    """(n, dim) or (n, tokens, dim); undefined where the tile failed."""
    failed: dict[int, Failure]
    """Why reading failed, by place in the list that was asked for."""
    redone: frozenset[int] = frozenset()
    """Places of the tiles that were computed in fp32, as their results left the range of fp16."""
