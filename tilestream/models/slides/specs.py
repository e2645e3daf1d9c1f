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
        return attention_bytes(tiles + 1, self.dim, self.heads, self.hidden, cuda=cuda)


def attention_bytes(tokens: int, dim: int, heads: int, hidden: int, *, cuda: bool) -> int:
    """Upper bound of what a transformer over tokens holds: tokens, what attention makes of them, some heads' queries, keys and values, and chunks."""
    rows, values = (CUDA_ROWS_AT_ONCE, CUDA_CHUNK_VALUES) if cuda else (ROWS_AT_ONCE, CHUNK_VALUES)
    whole = int((2 + 3 * min(HEADS_AT_ONCE, heads) / heads) * tokens * dim * 4) + 16 * tokens
    seen = 3 * tokens * dim // heads * 4
    return whole + seen + min(rows, tokens) * (3 * hidden + 4 * dim) * 4 + 4 * min(values, tokens**2 + 1024) * 4


@dataclass(frozen=True)
class AlibiSpec:
    """Shape of a transformer over tile tokens whose logits fall with distance."""

    inputs: int
    dim: int
    depth: int
    heads: int
    hidden: int
    registers: int

    @property
    def weight_bytes(self) -> int:
        """The weights in fp32."""
        return 4 * (
            self.depth * (4 * self.dim**2 + 2 * self.dim * self.hidden + 16 * self.dim + self.hidden) + (self.inputs + 16) * self.dim
        )

    def bytes(self, tiles: int, *, cuda: bool = False) -> int:
        """Upper bound of what encoding holds where it computes, without the weights."""
        return attention_bytes(tiles + 1 + self.registers, self.dim, self.heads, self.hidden, cuda=cuda)


@dataclass(frozen=True)
class GatedSpec:
    """Shape of a gated attention."""

    inputs: int
    dim: int
    """Of the slide's vector."""
    family: str
    """feather, chief or madeleine: how layers are named, and what is averaged."""
    width: int = 512
    """Of what a tile becomes."""
    gate: int = 256
    heads: int = 1

    @property
    def weight_bytes(self) -> int:
        """The weights in fp32."""
        embed = (self.inputs + 2) * self.width + (self.width * self.width * (1 + self.heads) if self.family == "madeleine" else 0)
        return 4 * (embed + self.heads * 2 * (self.width + 2) * self.gate + self.width * self.heads * (self.width + 2))

    def bytes(self, tiles: int, *, cuda: bool = False) -> int:  # as the others
        """Upper bound of what encoding holds where it computes, without the weights."""
        return min(tiles, ROWS_AT_ONCE) * (4 * self.inputs + self.heads * (6 * self.width + 3 * self.gate)) * 8


@dataclass(frozen=True)
class RegionSpec:
    """Shape of a transformer over the tiles of a region."""

    inputs: int
    dim: int
    depth: int
    heads: int
    side: int = 16
    """Tiles along a side of a region."""
    table: int = 14
    """Cells along a side of the learned table of positions, which is interpolated."""
    at_once: int = 32
    """Regions that are encoded at once."""

    @property
    def weight_bytes(self) -> int:
        """The weights in fp32."""
        return 4 * (self.depth * (12 * self.dim**2 + 13 * self.dim) + (self.inputs + self.table**2 + 8) * self.dim)

    def bytes(self, tiles: int, *, cuda: bool = False) -> int:  # as the others
        """Upper bound of what encoding holds where it computes, without the weights."""
        tokens = self.at_once * (self.side**2 + 1)
        return 8 * tiles * (self.dim + 6) + tokens * (12 * self.dim + self.heads * (self.side**2 + 1) * 3) * 4


@dataclass(frozen=True)
class RemoteSpec:
    """What is known of a slide encoder that its authors' own code builds."""

    inputs: int
    dim: int
    call: str
    """How it is called: patch_features, representations or embedding."""
    weight_bytes: int
    """About what its weights take in fp32."""
    pair_bytes: int = 0
    """What it holds for each pair of tiles."""

    def bytes(self, tiles: int, *, cuda: bool = False) -> int:  # as the others
        """About what encoding holds where it computes, without the weights: what the code of others takes is not known better."""
        return tiles * (self.inputs * 4 * 4 + 64) + tiles**2 * self.pair_bytes


Spec = LongNetSpec | AlibiSpec | GatedSpec | RegionSpec | RemoteSpec
