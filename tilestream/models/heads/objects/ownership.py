"""Which block of an overlapping grid keeps an object: the first one in which the object ends before the block does.

Every block decides alone, from the end of the object's bounding box on each axis; no two blocks keep the same object, and no order counts.
Source of the rule: prediction in blocks of StarDist, https://github.com/stardist/stardist (stardist/big.py, `Block.filter_objects`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AxisBlocks:
    """Overlapping blocks along one axis. Of block k, `size` px are read from `k * step` on; of those, `context` px a side serve as surroundings only.

        |....|rrrr|wwwwwwww|rrrr|....|                       block 0: context, what it shares, what is its own, what it shares, context
                       |....|rrrr|wwwwwwww|rrrr|....|        block 1

    The first block trusts its first pixels, and the last one its last: there the image ends.
    """

    length: int
    """Of the image, px."""
    size: int
    """Of a block, px."""
    overlap: int
    """Px that two neighbours both trust; an object must be shorter."""
    context: int = 0
    """Px a side that are read and not trusted."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.overlap < 0 or self.context < 0:
            raise ValueError(
                f"AxisBlocks length must be >= 1 px, overlap and context >= 0, got {self.length}, {self.overlap}, {self.context}"
            )
        if self.step < 1:
            raise ValueError(f"AxisBlocks size must exceed overlap + 2 * context, got {self.size} and {self.overlap} + 2 * {self.context}")

    @property
    def step(self) -> int:
        """Px from the start of a block to that of the next."""
        return self.size - 2 * self.context - self.overlap

    @property
    def count(self) -> int:
        """Blocks that reach the end of the image."""
        return max(1, math.ceil((self.length - self.size) / self.step) + 1)

    def start(self, block: int) -> int:
        """First px that a block reads."""
        return block * self.step

    def trusted(self, block: int) -> tuple[float, float]:
        """First px that a block trusts, and the px past its last; infinite at the ends of the image."""
        first = -math.inf if block == 0 else self.start(block) + self.context
        end = math.inf if block == self.count - 1 else self.start(block) + self.size - self.context
        return first, end

    def owns(self, block: int, end: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(m,) whether a block keeps objects whose boxes end at `end` (m,), px of the image, the end excluded."""
        before = -math.inf if block == 0 else self.trusted(block - 1)[1]
        return (end >= before) & (end < self.trusted(block)[1])

    def spans(self, block: int, begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(m,) whether objects that a block owns reach through all that it shares with the block before, so that neither may see them whole."""
        return self.owns(block, end) & (begin <= self.trusted(block)[0])


def owned(
    rows: AxisBlocks, cols: AxisBlocks, block: tuple[int, int], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(m,) which objects block (row, col) keeps, and which of them are too large for the overlap.

    `boxes` (m, 4) are y0, x0, y1, x1 in px of the image.
    """
    y0, x0, y1, x1 = boxes.T
    keep = rows.owns(block[0], y1) & cols.owns(block[1], x1)
    return keep, keep & (rows.spans(block[0], y0, y1) | cols.spans(block[1], x0, x1))
