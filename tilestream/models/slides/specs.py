"""Shapes of slide encoders and what they hold, as arithmetic: no library that computes is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_VALUES, CUDA_CHUNK_VALUES = 1 << 22, 1 << 27
"""Logits that are made at once on a processor, and on a CUDA device."""

ROWS_AT_ONCE, CUDA_ROWS_AT_ONCE = 2048, 1 << 16
"""Tokens that pass linear layers at once."""

HEADS_AT_ONCE = 4
"""Heads whose queries, keys and values are held at once."""


@dataclass(frozen=True)
class Branches:
    """The segments and ratios of dilated attention, branch by branch; a ratio divides the number of heads."""

    segments: tuple[int, ...]
    """Tokens of a segment."""
    ratios: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.segments, self.ratios, strict=True))

    def displaces(self, tokens: int) -> bool:
        """Whether the published module misplaces segments in a sequence of so many tokens."""
        return any(segment < tokens and segment % ratio for segment, ratio in self)


RELEASED = Branches((1024, 5792, 32768, 185363, 1048576), (1, 2, 4, 8, 16))
"""Of the released models of GigaPath: int(2 ** k) for k from log2 1024 to log2 1048576 in four equal steps."""


@dataclass(frozen=True)
class LongNetSpec:
    """Shape of a LongNet slide encoder."""

    inputs: int
    """Features of a tile."""
    dim: int
    depth: int
    heads: int
    hidden: int
    branches: Branches = RELEASED
    cells: int = 1000
    """Cells along a side of the table of positions."""

    @property
    def weight_bytes(self) -> int:
        """The weights in fp32."""
        block = 4 * self.dim**2 + 2 * self.dim * self.hidden + 11 * self.dim + 3 * self.hidden
        return 4 * (self.depth * block + (self.inputs + 6) * self.dim)

    def bytes(self, tiles: int, *, cuda: bool = False) -> int:
        """Upper bound of what encoding holds where it computes, without the weights."""
        tokens, at_once = tiles + 1, min(HEADS_AT_ONCE, self.heads) / self.heads
        whole = int((2 + 3 * at_once) * tokens * self.dim * 4) + 16 * tokens
        rows, values = (CUDA_ROWS_AT_ONCE, CUDA_CHUNK_VALUES) if cuda else (ROWS_AT_ONCE, CHUNK_VALUES)
        seen = 3 * tokens * self.dim // self.heads * 4
        scratch = min(rows, tokens) * (3 * self.hidden + 4 * self.dim) * 4 + 3 * min(values, tokens**2 + 1024) * 4
        return whole + seen + scratch
