"""Patches that overlap, put together: each pixel is the weighted mean of the patches that were computed and reach it.

Sums are taken patch by patch in row-major order, whoever computes them and however the image is cut, so that bytes never depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.models.heads.patch_grid import CoreRect, PatchGrid

Blend = Literal["hann", "cosine", "crop"]
"""How patches meet: two ramps that add up to one over the overlap, or each core from its own patch alone."""


def ramp_weights(side: int, overlap: int, blend: Blend) -> NDArray[np.float64]:
    """(side,) weights along one axis of patches that overlap by `overlap`: those of neighbours add up to one everywhere.

    With `crop` a patch has all weight in its core and none in its margins.
    """
    weights = np.ones(side)
    if overlap == 0:
        return weights
    at = np.arange(overlap)
    if blend == "crop":
        rise = (at >= overlap // 2).astype(np.float64)
    elif blend == "hann":
        rise = np.sin(np.pi / 2 * (at + 0.5) / overlap) ** 2
    else:
        rise = 0.5 - 0.5 * np.cos(np.pi * (at + 1) / (overlap + 1))
    weights[:overlap] = rise
    weights[side - overlap :] = 1 - rise  # not its mirror image: the two must add up to one in every bit
    return weights


@dataclass(frozen=True)
class Patch:
    """One patch of the model's output."""

    row: int
    col: int
    values: Tensor | None
    """(c, side, side) floating point; None where it was not computed."""


@dataclass(frozen=True)
class Piece:
    """A finished rectangle of the output."""

    y: int
    """First row and column, output px."""
    x: int
    values: Tensor
    """(c, h, w) float32; undefined where nothing was computed."""
    computed: Tensor
    """(h, w) bool: which pixels lie in the core of a patch that was computed."""


class Blender:
    """Pieces of a rectangle of cores from its patches.

    Order: patches come row by row, each from left to right; pieces follow as soon as no further patch can touch them.

    Memory bound: one patch, and of the patches above it what the next row still overlaps: `overlap` rows across the rectangle.

    Parameters
    ----------
    grid : PatchGrid
    rect : CoreRect
        The cores that are wanted.
    blend : str
        hann, cosine or crop.
    channels : int
        Of the model's output.
    device : torch.device
        Where sums are kept.
    """

    def __init__(self, grid: PatchGrid, rect: CoreRect, blend: Blend, channels: int, device: torch.device) -> None:
        self.grid, self.rect = grid, rect
        self.crop = blend == "crop" or grid.margin == 0
        """Whether patches never meet: then the patches of the rectangle are enough."""
        along = torch.from_numpy(ramp_weights(grid.side, 2 * grid.border, blend)).to(device, torch.float32)
        self._weights = along[:, None] * along
        self._origin = (rect.col - 1) * grid.core - grid.border  # output px of the first column of what is carried
        width = 0 if self.crop else (rect.col_end - rect.col + 2) * grid.core + 2 * grid.border
        self._carry = torch.zeros(channels + 1, 2 * grid.border, width, device=device)
        self._window: Tensor | None = None
        self._masks: dict[bytes, Tensor] = {}  # to bring one to a device is to wait for all that it is to do before

    @property
    def ring(self) -> int:
        """Cores around the rectangle whose patches reach into it."""
        return 0 if self.crop else 1

    def run(self, patches: Iterator[Patch], needed: NDArray[np.bool_]) -> Iterator[Piece]:
        """The pieces of the rectangle; `needed` (rows, cols) says which patches come, row-major."""
        return self._cores(patches) if self.crop else self._sums(patches, needed)

    def _cores(self, patches: Iterator[Patch]) -> Iterator[Piece]:
        """Each core from its own patch, bit for bit."""
        grid = self.grid
        inner = slice(grid.border, grid.border + grid.core)
        for patch in patches:
            if patch.values is not None:
                values = patch.values[:, inner, inner].float()
                yield Piece(patch.row * grid.core, patch.col * grid.core, values, torch.ones_like(values[0], dtype=torch.bool))

    def _sums(self, patches: Iterator[Patch], needed: NDArray[np.bool_]) -> Iterator[Piece]:
        grid, rect = self.grid, self.rect
        computed = np.zeros((grid.rows + 2, grid.cols + 2), np.bool_)  # with a border of one, so that neighbours are always there
        for row in range(rect.row - 1, rect.row_end + 1):
            self._window = None
            for col in range(rect.col - 1, rect.col_end + 1):
                values = None
                if 0 <= row < grid.rows and 0 <= col < grid.cols and needed[row, col]:
                    patch = next(patches)
                    assert (patch.row, patch.col) == (row, col), "patches come row-major"
                    values, computed[row + 1, col + 1] = patch.values, patch.values is not None
                above = bool(computed[row, max(0, col) : col + 3].any())
                if values is None and self._window is None and not above:
                    continue
                sums = self._add(col, values)
                corners = computed[row : row + 2, col : col + 2]
                if row >= rect.row and col >= rect.col and corners.any():
                    yield self._piece(row, col, sums, corners)
        assert next(patches, None) is None, "every patch that is needed was taken"

    def _add(self, col: int, values: Tensor | None) -> Tensor:
        """Add a patch of column `col`; the sums (c + 1, core, core) that are complete by it, weights last."""
        core, overlap, side = self.grid.core, 2 * self.grid.border, self.grid.side
        start = col * core - self.grid.border - self._origin
        window = self._carry.new_zeros(len(self._carry), side, side)
        old = 0
        if self._window is not None:
            window[:, :, :overlap] = self._window[:, :, core:]
            old = overlap
        window[:, :overlap, old:] = self._carry[:, :, start + old : start + side]
        if values is not None:
            window[:-1] += values.float() * self._weights  # multiplied, then added: fused, it would not be the same on every machine
            window[-1] += self._weights
        self._carry[:, :, start : start + core] = window[:, core:, :core]
        self._window = window
        return window[:, :core, :core]

    def _piece(self, row: int, col: int, sums: Tensor, corners: NDArray[np.bool_]) -> Piece:
        """The part of complete sums that lies in the rectangle; `corners` (2, 2) says which of the cores that meet in it were computed."""
        grid, rect = self.grid, self.rect
        y, x = row * grid.core - grid.border, col * grid.core - grid.border
        within = (
            slice(max(0, rect.row * grid.core - y), min(grid.core, rect.row_end * grid.core - y)),
            slice(max(0, rect.col * grid.core - x), min(grid.core, rect.col_end * grid.core - x)),
        )
        computed = self._mask(corners)[within]
        weight = sums[-1][within]
        values = sums[:-1][:, within[0], within[1]] / torch.where(weight > 0, weight, 1)
        return Piece(y + within[0].start, x + within[1].start, values, computed)

    def _mask(self, corners: NDArray[np.bool_]) -> Tensor:
        """(core, core) which of the pixels between the middles of four cores belong to one that was computed."""
        key = corners.tobytes()
        if key not in self._masks:
            part = (np.arange(self.grid.core) >= self.grid.border).astype(np.int64)
            self._masks[key] = torch.from_numpy(corners[part][:, part]).to(self._weights.device)
        return self._masks[key]
