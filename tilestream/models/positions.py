"""Encodings of where a token lies: from its place on the absolute grid, never from its order of arrival.

Angles are computed in float64 on the CPU; only their sine and cosine are cast. An angle in bfloat16 on a grid thousands of tokens
wide is wrong by whole radians.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tilestream.models.patch_embed import BlankLinear

MICROMETRE_UNIT = 8.0
"""Length in µm that turns the fastest channel by one radian where mpp is known: a 16 px patch at 0.5 µm/px. Wavelengths then run
from 50 µm to 0.5 m, longer than any slide, and no stride in whole µm is a multiple of one."""

GRID_UNIT = 1.0
"""The same in grid units, where mpp is unknown: one token."""

_BASE = 10_000.0


def token_positions(tok_row: Tensor, tok_col: Tensor, stride_px: float, mpp: float | None) -> tuple[Tensor, Tensor]:
    """Centres of grid cells in µm, or in grid units where mpp is unknown.

    In µm a place has one position whatever the level, stride or mpp that it is read at.

    Parameters
    ----------
    tok_row, tok_col : (n,) int64
        Indices on the grid anchored at level-0 (0, 0).
    stride_px : float
        Step between token origins, px at `mpp`. Unused where `mpp` is None.
    mpp : float or None
        µm/px of the pixels that `stride_px` counts.

    Returns
    -------
    y, x : (n,) float64
        On the CPU. Divide by `position_unit(mpp)` for radians of the fastest channel.
    """
    step = 1.0 if mpp is None else stride_px * mpp
    y = (tok_row.to("cpu", torch.float64) + 0.5) * step
    x = (tok_col.to("cpu", torch.float64) + 0.5) * step
    return y, x


def position_unit(mpp: float | None) -> float:
    """Length that turns the fastest channel of `sincos_2d` by one radian, in the unit of `token_positions` for this mpp."""
    return GRID_UNIT if mpp is None else MICROMETRE_UNIT


def sincos_2d(y: Tensor, x: Tensor, dim: int, *, unit: float = GRID_UNIT, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed encoding of 2D places: the first half of the channels from y, the second from x; in each half sines, then cosines.

    Frequencies fall geometrically from 1 to 1/10,000 radian per `unit` (Vaswani et al. 2017, arXiv:1706.03762; in 2D He et al. 2022,
    MAE, arXiv:2111.06377), so wavelengths run from 2π to nearly 20,000π units and neighbours stay distinct anywhere.

    Parameters
    ----------
    y, x : (n,) float64
        Coordinates, in any one unit of length.
    dim : int
        Channels; a multiple of 4.
    unit : float
        Length of one radian of the fastest channel, in the unit of `y` and `x`.
    dtype : torch.dtype
        Of the result; the angles are float64 in any case.

    Returns
    -------
    encoding : (n, dim) dtype
        On the CPU.

    Raises
    ------
    ValueError
        Where `dim` is not a positive multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"sincos_2d needs a dim that is a positive multiple of 4, got {dim}")
    return torch.cat([_sincos_1d(axis, dim // 2, unit, dtype) for axis in (y, x)], dim=1)


def _sincos_1d(values: Tensor, dim: int, unit: float, dtype: torch.dtype) -> Tensor:
    """(n,) coordinates to (n, dim); each distinct coordinate is computed once, as a grid has few."""
    distinct, inverse = torch.unique(values.to("cpu", torch.float64), return_inverse=True)
    frequency = _BASE ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)) / unit
    angle = torch.outer(distinct, frequency)  # (u, dim / 2)
    table = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1).to(dtype)  # (u, dim)
    return table[inverse]


class Learned2D(nn.Module):
    """A learned vector for each cell of a window, added by grid index modulo the window.

    The state dict holds `table`, (window * window, dim), row-major.

    Parameters
    ----------
    window : int
        Side of a window, tokens.
    dim : int
        Channels of a token.
    """

    def __init__(self, window: int, dim: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.zeros(window * window, dim))

    def forward(self, tok_row: Tensor, tok_col: Tensor) -> Tensor:
        """(n,) int64 absolute rows and columns, which may be negative, to (n, dim)."""
        cell = tok_row.remainder(self.window) * self.window + tok_col.remainder(self.window)
        return self.table[cell.to(self.table.device)]


class RoPE2D(nn.Module):
    """Rotary encoding of queries and keys inside a window (Su et al. 2021, arXiv:2104.09864; in 2D Heo et al. 2024, arXiv:2403.13298).

    The first half of a head's channels turns with the row in the window, the second half with the column, so that logits depend on
    the offset of two tokens only. Turning happens in float32 outside autocast. There is nothing to learn and nothing in the state dict.

    Parameters
    ----------
    window : int
        Side of a window, tokens.
    head_dim : int
        Channels of a head; a multiple of 4.

    Raises
    ------
    ValueError
        Where `head_dim` is not a positive multiple of 4.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, window: int, head_dim: int) -> None:
        super().__init__()
        if head_dim < 4 or head_dim % 4:
            raise ValueError(f"RoPE2D needs a head_dim that is a positive multiple of 4, got {head_dim}")
        pairs = head_dim // 4
        frequency = 100.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)  # a window is short: wavelengths of 6 to 628 tokens
        cell = torch.arange(window * window)
        row, col = (cell // window).double(), (cell % window).double()
        angle = torch.cat([torch.outer(row, frequency), torch.outer(col, frequency)], dim=1)  # (window * window, head_dim / 2)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Turn (w, heads, window * window, head_dim) queries or keys; shape and dtype stay."""
        with torch.autocast(heads.device.type, enabled=False):
            first, second = heads.float().reshape(*heads.shape[:-1], -1, 2).unbind(-1)  # each (w, heads, window * window, head_dim / 2)
            cos, sin = self.cos.float(), self.sin.float()
            turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
        return turned.flatten(-2).to(heads.dtype)


class PatchRotation(nn.Module):
    """Rotary encoding of a picture's patches, as DINOv3 has it (Siméoni et al. 2025, arXiv:2508.10104).

    In each half of a head's channels the first quarter turns with the row and the second with the column; a channel turns with the one half
    a head further. Tokens before the patches are left as they are. There is nothing to learn and nothing in the state dict.

    Parameters
    ----------
    side : int
        Patches along a side.
    head_dim : int
        Channels of a head; a multiple of 4.
    base : float
        Wavelengths grow by nearly this factor from channel to channel.
    places : str
        `centred`: patches lie from -1 to 1 along a side, and the shortest wavelength is 1. `index`: a patch's number along a side is the
        angle of the shortest, in radians.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, side: int, head_dim: int, base: float = 100.0, places: str = "centred") -> None:
        super().__init__()
        if head_dim < 4 or head_dim % 4:
            raise ValueError(f"PatchRotation needs a head_dim that is a positive multiple of 4, got {head_dim}")
        frequency = base ** -(torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim)
        place = torch.arange(side, dtype=torch.float64)
        if places == "centred":
            place = ((place + 0.5) / side * 2 - 1) * 2 * math.pi
        cell = torch.arange(side * side)
        angle = torch.cat([torch.outer(place[cell // side], frequency), torch.outer(place[cell % side], frequency)], dim=1)
        self.register_buffer("cos", angle.cos().repeat(1, 2).float(), persistent=False)  # (side * side, head_dim)
        self.register_buffer("sin", angle.sin().repeat(1, 2).float(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Turn the last side * side tokens of (n, heads, tokens, head_dim) queries or keys; shape and dtype stay."""
        before = heads.shape[2] - len(self.cos)
        first, patches = heads[:, :, :before], heads[:, :, before:]
        low, high = patches.chunk(2, dim=-1)
        turned = patches * self.cos + torch.cat([-high, low], dim=-1) * self.sin
        return torch.cat([first, turned.to(heads.dtype)], dim=2)


def _window_offsets(window: int) -> tuple[Tensor, Tensor]:
    """(m, m) int64 row and column offsets from each cell of a window to each other one; m is window * window."""
    cell = torch.arange(window * window)
    row, col = cell // window, cell % window
    return row[:, None] - row[None, :], col[:, None] - col[None, :]


class TableBias(nn.Module):
    """A learned number for each head and offset of two tokens of a window, added to their logit (Swin, Liu et al. 2021, arXiv:2103.14030).

    The state dict holds `table`, ((2 * window - 1) ** 2, heads), by row offset and then column offset, from the most negative one.

    Parameters
    ----------
    window : int
        Side of a window, tokens.
    heads : int
        Attention heads.
    """

    cells: Tensor

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        row, col = _window_offsets(window)
        self.register_buffer("cells", (row + window - 1) * (2 * window - 1) + col + window - 1, persistent=False)

    def forward(self) -> Tensor:
        """(heads, window * window, window * window)."""
        return self.table[self.cells].permute(2, 0, 1)


class LogBias(nn.Module):
    """A bias that a small network gives for log-spaced offsets (Swin v2, Liu et al. 2022, arXiv:2111.09883, equations 3 and 4).

    Weights carry over to other windows. The state dict holds `fc1`, 2 to 512, and `fc2`, 512 to heads without bias; the bias is
    16 * sigmoid of what they give, as there.

    Parameters
    ----------
    window : int
        Side of a window, tokens.
    heads : int
        Attention heads.
    """

    offsets: Tensor

    def __init__(self, window: int, heads: int, hidden: int = 512) -> None:
        super().__init__()
        self.fc1 = BlankLinear(2, hidden)
        self.fc2 = BlankLinear(hidden, heads, bias=False)
        offset = torch.stack(_window_offsets(window), dim=-1).double()
        spaced = offset.sign() * torch.log2(1 + 8 * offset.abs() / max(1, window - 1)) / math.log2(8)
        self.register_buffer("offsets", spaced.float(), persistent=False)

    def forward(self) -> Tensor:
        """(heads, window * window, window * window)."""
        hidden = torch.relu(self.fc1(self.offsets.to(self.fc1.weight.dtype)))
        bias: Tensor = 16 * torch.sigmoid(self.fc2(hidden))
        return bias.permute(2, 0, 1)
