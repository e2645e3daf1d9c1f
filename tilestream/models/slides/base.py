"""What every slide encoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class TileBlock:
    """Some tiles of a slide, all of which have a vector, in the order of the slide."""

    vectors: Tensor
    """(m, d) float32, where the encoder is."""
    row: Tensor
    """(m,) int64 cell of each tile, in tiles of the encoder from level-0 (0, 0); on the CPU."""
    col: Tensor


@dataclass(frozen=True)
class Encoded:
    """What came of a slide."""

    vector: Tensor
    """(dim,)."""
    tokens: Tensor | None
    """(n, d) of the tiles, after the layers and before they become one; None where there are none."""


class SlideEncoder(nn.Module, ABC):
    """From the vectors of all tiles and their places to one vector of the slide."""

    inputs: int
    """Features of a tile."""
    dim: int
    """Of the slide's vector."""

    @abstractmethod
    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The vector of a slide of so many tiles, at least one, which come in blocks; `check` is called now and then and may end the work by raising."""
