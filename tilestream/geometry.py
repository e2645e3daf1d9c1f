"""Sizes, regions and scales, and one small function for each step between coordinate planes.

Planes: level-0 pixels (`l0_`), pixels of a level (`px_`), output pixels at the target resolution, tile indices (`tile_`).
Order is (y, x) everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL_TOLERANCE = 0.01
"""Relative excess of a level's downsample over the wanted scale that still counts as "not coarser"."""


@dataclass(frozen=True)
class Size:
    """Height and width of an image or level, in its own pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"Size must be at least 1 x 1 px, got {self.height} x {self.width}")


@dataclass(frozen=True)
class Region:
    """A rectangle in the pixels of one level; it may reach over the image, even to negative coordinates."""

    px_y: int
    px_x: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"Region must be at least 1 x 1 px, got {self.height} x {self.width}")

    def clipped(self, size: Size) -> Region | None:
        """The part inside an image of `size`, or None where they do not meet."""
        y0, x0 = max(self.px_y, 0), max(self.px_x, 0)
        y1, x1 = min(self.px_y + self.height, size.height), min(self.px_x + self.width, size.width)
        return Region(y0, x0, y1 - y0, x1 - x0) if y1 > y0 and x1 > x0 else None


@dataclass(frozen=True)
class Level:
    """One level of a pyramid."""

    size: Size
    """Pixels of the level."""
    downsample: float
    """Level-0 pixels per pixel of this level; a float, never rounded."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.downsample) and self.downsample > 0):
            raise ValueError(f"Level downsample must be positive and finite, got {self.downsample}")


def downsample_from_sizes(l0_size: Size, size: Size) -> float:
    """Downsample of a level from its size: the mean of both axes' ratios, as OpenSlide computes it."""
    return (l0_size.height / size.height + l0_size.width / size.width) / 2


def level_for_scale(levels: tuple[Level, ...], scale: float) -> int | None:
    """Index of the coarsest level whose downsample is <= `scale` (tolerance 1 %), or None where even the finest is coarser."""
    fitting = [k for k, level in enumerate(levels) if level.downsample <= scale * (1 + LEVEL_TOLERANCE)]
    return max(fitting, key=lambda k: levels[k].downsample) if fitting else None


def scale_from_mpp(target_mpp: float, source_mpp: float) -> float:
    """Level-0 pixels per output pixel for a target resolution; both in µm/px."""
    return target_mpp / source_mpp
