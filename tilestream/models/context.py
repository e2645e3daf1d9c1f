"""A transformer over the tokens of a whole image, in which tokens of one window attend to each other."""

from __future__ import annotations

from typing import Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.errors import ConfigError
from tilestream.models.context_spec import CHUNK_WINDOWS, MLP_RATIO, ContextSpec, heads_refused
from tilestream.models.patch_embed import BlankLinear, freeze, seeded_init
from tilestream.models.positions import Learned2D, LogBias, RoPE2D, TableBias, position_unit, sincos_2d, token_positions
from tilestream.models.vit import Mlp
from tilestream.models.windows import attend_windows, pack_windows, window_partition, window_unpartition

POSITIONS = ("sincos", "learned", "rope", "bias", "log_bias", "none")


Rows = NDArray[np.float32]


class PlacedTiles(Protocol):
    """Tiles that say where they lie on a grid."""

    @property
    def tile_row(self) -> NDArray[np.int64]:
        """(n,) rows of the grid."""

    @property
    def tile_col(self) -> NDArray[np.int64]:
        """(n,) columns of the grid."""

    @property
    def stride_um(self) -> float | None:
        """Step of the grid in µm; None where mpp is unknown."""


class WindowAttention(nn.Module):
    """Self-attention among the tokens of one window; absent tokens are masked as keys."""

    def __init__(self, dim: int, heads: int, rope: RoPE2D | None, bias: TableBias | LogBias | None) -> None:
        super().__init__()
        self.heads = heads
        self.rope = rope
        self.bias = bias
        self.qkv = BlankLinear(dim, 3 * dim)
        self.proj = BlankLinear(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """(w, window * window, dim) with mask (w, window * window) bool, True where there is a token, to (w, window * window, dim).

        No mask: all tokens are there.
        """
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1))  # (w, window * window, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (w, heads, window * window, dim / heads)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        out: Tensor = self.proj(attend_windows(q, k, v, mask, None if self.bias is None else self.bias()).transpose(1, 2).flatten(2))
        return out


class WindowBlock(nn.Module):
    """Norm, window attention, norm, MLP, each half added to what came in; norms and MLP see one token at a time."""

    def __init__(self, dim: int, heads: int, hidden: int, rope: RoPE2D | None, bias: TableBias | LogBias | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, heads, rope, bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """(w, window * window, dim) with mask (w, window * window) bool or none to (w, window * window, dim); absent cells hold anything."""
        windows = windows + self.attn(self.norm1(windows), mask)
        out: Tensor = windows + self.mlp(self.norm2(windows))
        return out


class TokenEnds(nn.Module):
    """Where tokens go into a narrower transformer and come out again: standardised, projected, and projected back.

    Parameters
    ----------
    dim : int
        Channels of a token outside.
    width : int
        Channels inside.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.hidden = nn.Parameter(torch.zeros(width))
        self.enter = BlankLinear(dim, width)
        self.exit = BlankLinear(width, dim)

    def standardise(self, tokens: Tensor) -> Tensor:
        """(n, dim) float32 of mean 0 and spread 1 over what the model was fitted on."""
        return (tokens.float() - self.mean.float()) / self.spread.float()

    def take(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        """(n, dim) to (n, width); what is `hidden` becomes the vector that stands for a token that is not known."""
        inner: Tensor = self.enter(self.standardise(tokens).to(self.enter.weight.dtype))
        return inner if hidden is None else torch.where(hidden[:, None], self.hidden.to(inner.dtype), inner)

    def leave(self, tokens: Tensor) -> Tensor:
        """(n, width) to (n, dim)."""
        out: Tensor = self.exit(tokens)
        return out


class ContextTransformer(nn.Module):
    """Windowed transformer on the absolute token grid; odd layers shift windows by half (Swin, Liu et al. 2021, arXiv:2103.14030).

    `forward` takes the whole grid and is what every streamed schedule must equal. It is `encode`, `mix` for each layer, `finish`;
    a schedule calls these on the tokens that it holds. The state dict holds `blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
    mlp.fc2}`, `norm`, with learned positions `table.table`, with biases `blocks.N.attn.bias`, and with a width `ends.{mean, spread, hidden,
    enter, exit}`: tokens are then standardised and brought to that width, and what comes out are standardised tokens as their surroundings
    make them likely.

    Order: tokens come back in the order given; no result depends on it.

    Memory bound: activations of `chunk_windows` windows, beside the tokens in and out. Chunks have one shape always, so a token's
    result does not depend on which other windows are computed with it (bit for bit in float32 on a CPU).

    Parameters
    ----------
    dim : int
        Channels of a token.
    depth : int
        Number of layers.
    heads : int
        Attention heads; must divide `dim`.
    window : int
        Side of a window, tokens.
    shift : bool
        Whether odd layers shift windows by `window // 2`; without, windows never exchange anything.
    position : str
        `sincos`: absolute, in µm where mpp is known, added at the input. `learned`: a table over the window, added at the input.
        `rope`: inside windows, in each layer. `bias`, `log_bias`: a number for each head and offset, from a table or a small network,
        in each layer. `none`.
    seed : int
        Of the random weights.
    mlp_ratio : float
        Hidden channels of the MLP for each channel of a token.
    width : int, optional
        Channels of a token between the layers; by default those that it comes with.

    Raises
    ------
    ConfigError
        Naming `context.heads`, `context.window`, `context.depth`, `context.width` or `context.position`.
    """

    chunk_windows: int = CHUNK_WINDOWS
    """Windows computed at once."""

    def __init__(  # noqa: PLR0913, PLR0917  # its shape in numbers
        self,
        dim: int,
        depth: int = 4,
        heads: int = 6,
        window: int = 8,
        shift: bool = True,  # noqa: FBT001, FBT002
        position: str = "sincos",
        seed: int = 0,
        mlp_ratio: float = MLP_RATIO,
        width: int | None = None,
    ) -> None:
        super().__init__()
        inner = dim if width is None else width
        _check_shape(inner, depth, heads, window)
        _check_position(inner, heads, position)
        self.dim = dim
        self.width = width
        self.window = window
        self.shift = shift
        self.position = position
        self._mlp_ratio = mlp_ratio
        rope = RoPE2D(window, inner // heads) if position == "rope" else None
        self.table = Learned2D(window, inner) if position == "learned" else None
        hidden = int(inner * mlp_ratio)
        biases = [_make_bias(position, window, heads) for _ in range(depth)]
        self.blocks = nn.ModuleList([WindowBlock(inner, heads, hidden, rope, bias) for bias in biases])
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.ends = None if width is None else TokenEnds(dim, width)
        seeded_init(self, seed)
        freeze(self)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    @property
    def spec(self) -> ContextSpec:
        """The shape in numbers."""
        return ContextSpec(self.dim, self.depth, self.window, self.shift, self._mlp_ratio, self.chunk_windows, self.width)

    @property
    def halo(self) -> int:
        """Tokens on each side that a result depends on: `ContextSpec.halo`."""
        return self.spec.halo

    @property
    def lag(self) -> int:
        """Rows that row bands hold back: `ContextSpec.lag`."""
        return self.spec.lag

    def state_bytes(self, width: int) -> int:
        """What row bands hold over a grid `width` tokens wide: `ContextSpec.state_bytes`."""
        return self.spec.state_bytes(width)

    def layer_shift(self, layer: int) -> int:
        """Tokens by which the windows of a layer begin before multiples of the window."""
        return self.window // 2 if self.shift and layer % 2 else 0

    @overload
    def forward(self, tokens: Rows, tok_row: PlacedTiles) -> Rows: ...

    @overload
    def forward(self, tokens: Tensor, tok_row: Tensor, tok_col: Tensor, stride_um: float | None = None) -> Tensor: ...

    def forward(
        self, tokens: Tensor | Rows, tok_row: Tensor | PlacedTiles, tok_col: Tensor | None = None, stride_um: float | None = None
    ) -> Tensor | Rows:
        """Mix the tokens of a whole grid: as tensors with their places, or rows of a NumPy array with the tiles that they belong to.

        Parameters
        ----------
        tokens : (n, dim) floating point
            As a tensor finite: tokens of failed tiles are left out, not given as NaN or 0. Rows of an array that are not finite are absent
            for their neighbours and stay NaN.
        tok_row, tok_col : (n,) int64
            Absolute grid indices; no two tokens share a place. Or, in place of both and of the stride, the tiles: `find_tiles` gives them.
        stride_um : float or None
            Step of the grid in µm; None where mpp is unknown.

        Returns
        -------
        mixed : (n, dim)
            In the weights' dtype on the tokens' device; of an array, float32.
        """
        if not isinstance(tokens, Tensor):
            assert not isinstance(tok_row, Tensor), "rows of an array come with their tiles"
            return self._mix_rows(tokens, tok_row)
        assert isinstance(tok_row, Tensor), "a tensor comes with its places"
        assert tok_col is not None, "a tensor comes with its places"
        return self._mix_grid(tokens, tok_row, tok_col, stride_um)

    @torch.inference_mode()
    def _mix_rows(self, rows: Rows, tiles: PlacedTiles) -> Rows:
        """(n, dim) of (n, dim), NaN where a row is not finite."""
        good = np.isfinite(rows).all(axis=1)
        places = [torch.from_numpy(np.asarray(index[good], np.int64)) for index in (tiles.tile_row, tiles.tile_col)]
        out = np.full(rows.shape, np.nan, np.float32)
        tokens = torch.from_numpy(np.asarray(rows[good], np.float32)).to(self.norm.weight.device)
        out[good] = self._mix_grid(tokens, places[0], places[1], tiles.stride_um).float().cpu().numpy()
        return out

    def _mix_grid(self, tokens: Tensor, tok_row: Tensor, tok_col: Tensor, stride_um: float | None) -> Tensor:
        tokens = self.encode(tokens, tok_row, tok_col, stride_um)
        for layer in range(self.depth):
            tokens = self.mix(layer, tokens, tok_row, tok_col)
        return self.finish(tokens)

    def encode(self, tokens: Tensor, tok_row: Tensor, tok_col: Tensor, stride_um: float | None, hidden: Tensor | None = None) -> Tensor:
        """(n, width) of (n, dim) tokens: narrowed where the model is, with positions where they are added here; each token depends on itself alone.

        Those that are `hidden`, (n,) bool, are replaced by what stands for a token that is not known; it takes a model with a width.
        """
        if self.ends is not None:
            tokens = self.ends.take(tokens, hidden)
        else:
            assert hidden is None, "a model without a width has nothing that stands for a hidden token"
        tokens = tokens.to(self.norm.weight.dtype)
        if self.table is not None:
            placed: Tensor = tokens + self.table(tok_row, tok_col)
            return placed
        if self.position != "sincos":
            return tokens
        y, x = token_positions(tok_row, tok_col, 1.0, stride_um)  # the stride is the pixel here
        place = sincos_2d(y, x, tokens.shape[1], unit=position_unit(stride_um), dtype=tokens.dtype)
        return tokens + place.to(tokens.device)

    def mix(self, layer: int, tokens: Tensor, tok_row: Tensor, tok_col: Tensor) -> Tensor:
        """Apply one layer to (n, width) tokens; right for each token whose window in this layer is complete."""
        mixed = torch.empty_like(tokens)
        packed = pack_windows(tok_row, tok_col, self.window, self.layer_shift(layer))
        for cells in torch.split(packed, self.chunk_windows):
            # One kernel for all windows on a CPU, where the last bit counts; on a GPU the one without a mask is faster.
            masked = tokens.device.type == "cpu" or bool((cells < 0).any())
            self._mix_chunk(layer, tokens, cells.to(tokens.device, non_blocking=True), mixed, masked=masked)
        return mixed

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the last norm to (n, width) tokens, each alone, and bring them back to (n, dim)."""
        out: Tensor = self.norm(tokens)
        return out if self.ends is None else self.ends.leave(out)

    def _mix_chunk(self, layer: int, tokens: Tensor, cells: Tensor, mixed: Tensor, *, masked: bool) -> None:
        """One layer over at most `chunk_windows` windows' cells, into `mixed`.

        Windows that fill up the chunk hold zeros and attend to themselves: with every key masked they would be NaN. While it learns, nothing is filled up.
        """
        spare = 0 if self.training else self.chunk_windows - len(cells)
        windows = F.pad(window_partition(tokens, cells), (0, 0, 0, 0, 0, spare))
        mask = F.pad(cells >= 0, (0, 0, 0, spare), value=True) if masked else None
        window_unpartition(self.blocks[layer](windows, mask)[: len(cells)], cells, mixed)


def _make_bias(position: str, window: int, heads: int) -> TableBias | LogBias | None:
    if position == "bias":
        return TableBias(window, heads)
    return LogBias(window, heads) if position == "log_bias" else None


def _check_shape(dim: int, depth: int, heads: int, window: int) -> None:
    for key, value in (("depth", depth), ("heads", heads), ("window", window), ("width", dim)):
        if value < 1:
            raise ConfigError(f"context.{key}: {value}, but it must be 1 or more.")
    if refused := heads_refused(heads, dim):
        raise ConfigError(f"context.heads: {refused}")


def _check_position(dim: int, heads: int, position: str) -> None:
    if position not in POSITIONS:
        raise ConfigError(f"context.position: {position!r}, but it must be one of {', '.join(POSITIONS)}.")
    if position == "sincos" and dim % 4:
        raise ConfigError(f"context.position: sincos needs features in multiples of 4, a token has {dim}. Set it to learned or none.")
    if position == "rope" and dim // heads % 4:
        raise ConfigError(
            f"context.heads: rope needs features per head in multiples of 4, {dim} features in {heads} heads are {dim // heads}. "
            "Set other heads, or context.position to sincos, learned or none."
        )
