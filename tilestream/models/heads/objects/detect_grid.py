"""The patches in which objects of a slide are looked for, and the units in which they are worked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.geometry import Size
from tilestream.models.heads.objects.ownership import AxisBlocks, owned

UNIT = 4096
"""Side of a unit in px, about: its patches are read, committed and resumed as a whole."""

BATCH_PIXELS = 1 << 21
"""Pixels that a detector gets at once, about."""

Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class DetectGrid:
    """Overlapping patches over a slide; `scale` level-0 px are one px of theirs."""

    rows: AxisBlocks
    cols: AxisBlocks
    scale: float

    @classmethod
    def over(cls, l0_size: Size, scale: float, size: int, overlap: int, context: int) -> DetectGrid:
        """The patches of `size` px that cover an image. Raises ValueError where `overlap` and `context` leave no step."""
        rows, cols = (AxisBlocks(math.ceil(length / scale), size, overlap, context) for length in (l0_size.height, l0_size.width))
        return cls(rows, cols, scale)

    @property
    def side(self) -> int:
        """Patches along a side of a unit."""
        return max(1, UNIT // self.rows.step)

    @property
    def unit_cols(self) -> int:
        """Units across the image."""
        return -(-self.cols.count // self.side)

    @property
    def units(self) -> int:
        """Units of the image, numbered row-major."""
        return -(-self.rows.count // self.side) * self.unit_cols

    def patches(self, unit: int) -> tuple[Places, Places]:
        """(n,) rows and columns of the patches of a unit, row-major."""
        top, left = unit // self.unit_cols * self.side, unit % self.unit_cols * self.side
        rows = np.arange(top, min(top + self.side, self.rows.count))
        cols = np.arange(left, min(left + self.side, self.cols.count))
        return np.repeat(rows, len(cols)), np.tile(cols, len(rows))

    def l0_origins(self, index: Places) -> Places:
        """(n,) level-0 px where rows, or columns, of patches begin."""
        found: Places = np.rint(index * self.rows.step * self.scale).astype(np.int64)
        return found

    def l0_box(self, unit: int) -> tuple[float, float, float, float]:
        """y0, x0, y1, x1 in level-0 px of all that the patches of a unit read."""
        rows, cols = self.patches(unit)
        extent = self.rows.size * self.scale
        y0, y1, x0, x1 = (float(self.l0_origins(index)) for index in (rows[0], rows[-1], cols[0], cols[-1]))
        return y0, x0, y1 + extent, x1 + extent

    def touched(self, rows: Places, cols: Places, l0_y: Places, l0_x: Places, l0_extent: float) -> Flags:
        """(n,) which patches read a pixel of any of the m tiles at `l0_y`, `l0_x` (m,), level-0 px, of side `l0_extent`.

        Where tiles are cut from an image, what lies in none of them is not looked at.
        """
        marked = np.zeros((self.rows.count, self.cols.count), np.bool_)
        spans = [self._span(start, l0_extent, axis) for start, axis in ((l0_y, self.rows), (l0_x, self.cols))]
        (top, bottom), (left, right) = spans
        for down in range(int((bottom - top).max(initial=-1)) + 1):
            for across in range(int((right - left).max(initial=-1)) + 1):
                row, col = top + down, left + across
                there = (row <= bottom) & (col <= right)
                marked[row[there], col[there]] = True
        return marked[rows, cols]

    def _span(self, start: Places, extent: float, axis: AxisBlocks) -> tuple[Places, Places]:
        """First and last patch along an axis that meet tiles which begin at `start` (m,)."""
        origins = self.l0_origins(np.arange(axis.count)).astype(np.float64)
        first = np.searchsorted(origins + axis.size * self.scale, start.astype(np.float64), side="right")
        last = np.searchsorted(origins, start + extent, side="left") - 1
        return np.minimum(first, axis.count - 1), np.minimum(last, axis.count - 1)

    def owned(self, row: int, col: int, boxes: NDArray[np.float64]) -> tuple[Flags, Flags]:
        """(m,) which objects a patch keeps, and which of them are too large for the overlap; boxes (m, 4) in px of the patch."""
        y, x = self.rows.start(row), self.cols.start(col)
        keep, spanning = owned(self.rows, self.cols, (row, col), boxes + np.array([y, x, y, x]))
        inside = (boxes[:, 0] + y < self.rows.length) & (boxes[:, 1] + x < self.cols.length)
        return keep & inside, spanning & inside


def batch_of(size: int) -> int:
    """Patches of `size` px that a detector gets at once."""
    return max(1, min(16, BATCH_PIXELS // size**2))
