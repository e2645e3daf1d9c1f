"""The context transformer in numbers: how far a result reaches, what each schedule holds, and which schedule a slide gets."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_WINDOWS = 64
"""Windows computed at once; 64 windows of 8 x 8 fill a CPU core's matrix product, and a band of 224 px tiles has about as many."""

MLP_RATIO = 4.0

BAND_BYTES = 1 << 25
"""Tokens of one band in float32, about; whole rows of tiles, at least one."""


def heads_refused(heads: int, dim: int) -> str:
    """What is wrong with a number of heads for tokens of `dim` features, and which to set; "" where it divides them."""
    fits = [str(count) for count in range(1, 2 * heads + 1) if dim % count == 0]
    return "" if dim % heads == 0 else f"{heads} does not divide the {dim} features of a token. Set it to {' or '.join(fits[-3:])}."


@dataclass(frozen=True)
class ContextSpec:
    """Shape of a windowed transformer."""

    dim: int
    """Channels of a token."""
    depth: int
    """Number of layers."""
    window: int
    """Side of a window, tokens."""
    shift: bool
    """Whether odd layers shift windows by half."""
    mlp_ratio: float = MLP_RATIO
    """Hidden channels of the MLP for each channel of a token."""
    chunk_windows: int = CHUNK_WINDOWS
    width: int | None = None
    """Channels of a token between the layers, where they are others than outside."""

    @property
    def inner(self) -> int:
        """Channels of a token between the layers."""
        return self.dim if self.width is None else self.width

    @property
    def widest(self) -> int:
        """Channels of a token where it has the most."""
        return max(self.dim, self.inner)

    @property
    def model_bytes(self) -> int:
        """The weights in float32, in which they are made whatever they are cast to, and one matrix as it is read from a file."""
        inner = self.inner
        layer = (4 + 2 * self.mlp_ratio) * inner**2 + (9 + self.mlp_ratio) * inner
        rest = (2 + self.window**2) * inner + self.depth * (2 * self.window) ** 2 * inner // 16  # norm, learned positions, biases
        ends = 0 if self.width is None else 2 * self.dim * inner + 3 * self.dim + 2 * inner
        return int(self.depth * layer + rest + ends + self.mlp_ratio * inner**2) * 4

    @property
    def halo(self) -> int:
        """Tokens on each side that the result in a rectangle of whole, unshifted windows depends on.

        A pair of layers, one of them shifted, reaches one window further; the halo is tight where all tokens are there.
        """
        return self.window * (self.depth // 2) if self.shift and self.window > 1 else 0

    @property
    def lag(self) -> int:
        """Rows that a pass from top to bottom holds between rows in and rows out: half a window for each layer but the first."""
        return (self.depth - 1) * (self.window // 2) if self.shift and self.window > 1 else 0

    @property
    def chunk_bytes(self) -> int:
        """Activations of one chunk of windows: tokens, their normalised copy, queries, keys, values, mixed values, and the MLP."""
        return int(self.chunk_windows * self.window**2 * self.inner * (8 + 2 * self.mlp_ratio) * 4)

    def state_bytes(self, width: int, band_tokens: int = 0) -> int:
        """Upper bound of what row bands hold over a grid `width` tokens wide, in bytes, a band of tokens on its way included.

        A band's tokens are held as they came, in row-major order, encoded, and before and after a layer, beside the float64 of their
        means; rows that wait are held once, and copied when the next band joins them. A band is a row of windows where it is not said.
        """
        waiting = (self.lag + self.window) * width * (2 * self.widest * 4 + 2 * 8)
        band = (band_tokens or self.window * width) * (6 * self.widest * 4 + 4 * 8)
        return waiting + band + self.chunk_bytes

    def whole_bytes(self, tokens: int) -> int:
        """Upper bound of what the whole grid at once takes, in bytes: tokens as read, encoded, mixed and pooled, and their places."""
        return tokens * (self.widest * 4 * 4 + 8 * 8) + self.chunk_bytes


def choose_schedule(spec: ContextSpec, tokens: int, budget: int, workers: int) -> str:
    """`dense` where the whole grid fits into `budget` bytes, else `row_bands` for one worker and `halo_shards` for several."""
    if spec.whole_bytes(tokens) <= budget:
        return "dense"
    return "row_bands" if workers == 1 else "halo_shards"
