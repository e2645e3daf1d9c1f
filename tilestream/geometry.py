"""Sizes, regions, scales and the tile grid, with one small function for each step between coordinate planes.

Planes: level-0 pixels (`l0_`), pixels of a level (`px_`), output pixels at the target resolution, tile indices (`tile_`).
Order is (y, x) everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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


EDGE_TOLERANCE = 1e-6
"""Level-0 pixels of float noise that a tile may reach over the image without hanging over it."""


@dataclass(frozen=True)
class TileGrid:
    """Squares of `tile` output pixels every `stride` output pixels, anchored at level-0 (0, 0).

    Tile (row, col) has its top-left at level-0 `y = round(row * stride * scale)`, `x = round(col * stride * scale)`
    and covers `tile * scale` level-0 pixels a side.
    """

    l0_size: Size
    """The image, in level-0 pixels."""
    tile: int
    """Side of a tile, in output pixels."""
    stride: float
    """Step between tile origins, in output pixels; whole but where a file gave the places."""
    scale: float
    """Level-0 pixels per output pixel."""
    edge: Literal["pad", "drop"] = "pad"
    """Whether tiles that hang over the image are kept (with white outside) or left out."""

    def __post_init__(self) -> None:
        if self.tile < 1 or not self.stride > 0:
            raise ValueError(f"TileGrid tile must be >= 1 px and stride > 0, got {self.tile} and {self.stride}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"TileGrid scale must be positive and finite, got {self.scale}")

    @property
    def rows(self) -> int:
        """Number of tile rows that cover every pixel."""
        return math.ceil(self.l0_size.height / (self.stride * self.scale))

    @property
    def cols(self) -> int:
        """Number of tile columns that cover every pixel."""
        return math.ceil(self.l0_size.width / (self.stride * self.scale))

    @property
    def l0_extent(self) -> float:
        """Side of a tile in level-0 pixels."""
        return self.tile * self.scale

    @property
    def regular(self) -> bool:
        """Whether rows and columns are a lattice, so that neighbours in the grid are neighbours in the image."""
        return True

    @property
    def l0_offset(self) -> tuple[int, int]:
        """y, x of the top-left of tile (0, 0), level-0 px."""
        return 0, 0

    @property
    def l0_step(self) -> float:
        """Step between tile origins in level-0 pixels."""
        return self.stride * self.scale

    @property
    def l0_cells(self) -> tuple[float, float]:
        """y, x of the top-left of the cell of tile (0, 0), level-0 px. Cells are `l0_step` wide and share their tiles' centres: a value belongs there."""
        margin = (self.l0_extent - self.l0_step) / 2
        return self.l0_offset[0] + margin, self.l0_offset[1] + margin

    def nearest_rows(self, l0_y: NDArray[np.float64]) -> NDArray[np.int64]:
        """The tile row whose centres are nearest to each level-0 y, -1 where no tile of the lattice reaches."""
        return self._nearest(l0_y, self.l0_offset[0], self.rows)

    def nearest_cols(self, l0_x: NDArray[np.float64]) -> NDArray[np.int64]:
        """The tile column whose centres are nearest to each level-0 x, -1 where no tile of the lattice reaches."""
        return self._nearest(l0_x, self.l0_offset[1], self.cols)

    def _nearest(self, l0: NDArray[np.float64], start: int, count: int) -> NDArray[np.int64]:
        index = np.floor((l0 - start - (self.l0_extent - self.l0_step) / 2) / self.l0_step).astype(np.int64)
        index = np.clip(index, 0, count - 1)
        away = np.abs(l0 - (start + index * self.l0_step + self.l0_extent / 2))
        return np.where(away <= self.l0_extent / 2, index, -1)

    def l0_y(self, tile_row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level-0 y of the top edge of tile rows."""
        return self.l0_origins(tile_row)

    def l0_x(self, tile_col: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level-0 x of the left edge of tile columns."""
        return self.l0_origins(tile_col)

    def l0_origins(self, tile_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level-0 pixel of the tile edge for row (or column) indices; rounds half to even, as Python's `round`.

        Multiplied from left to right, as the formula reads: 15 * 511 * 0.9 is 6898.5, and 15 * (511 * 0.9) a little more.
        """
        origins: NDArray[np.int64] = np.rint(tile_index * self.stride * self.scale).astype(np.int64)
        return origins

    def overhangs(self, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each tile reaches over the bottom or right border of the image."""
        bottom = self.l0_y(tile_row) + self.l0_extent > self.l0_size.height + EDGE_TOLERANCE
        right = self.l0_x(tile_col) + self.l0_extent > self.l0_size.width + EDGE_TOLERANCE
        return bottom | right

    @property
    def count(self) -> int:
        """Number of all tiles that `edge` admits."""
        return self.rows * self.cols if self.edge == "pad" else len(self.candidates()[0])

    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) rows and (n,) columns of all tiles that `edge` admits, row-major."""
        tile_row = np.repeat(np.arange(self.rows, dtype=np.int64), self.cols)
        tile_col = np.tile(np.arange(self.cols, dtype=np.int64), self.rows)
        if self.edge == "drop":
            inside = ~self.overhangs(tile_row, tile_col)
            tile_row, tile_col = tile_row[inside], tile_col[inside]
        return tile_row, tile_col


@dataclass(frozen=True)
class PlacedGrid(TileGrid):
    """Tiles whose places a file gave: tile (row, col) has its top-left at `(l0_ys[row], l0_xs[col])`.

    On a lattice, rows and columns count its steps from the first one inside the image. Elsewhere they are ranks among the y and the x that occur:
    `regular` is then false, and neighbours in the grid may lie apart.
    """

    l0_ys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64), compare=False)
    """(rows,) level-0 y of each row."""
    l0_xs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64), compare=False)
    """(cols,) level-0 x of each column."""
    lattice: bool = True
    """Whether the places are a lattice."""
    _places: bytes = field(init=False, repr=False, default=b"")
    """The places as bytes: arrays are not compared, and grids of different places are not equal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_places", self.l0_ys.tobytes() + b"|" + self.l0_xs.tobytes())

    @property
    def rows(self) -> int:
        return len(self.l0_ys)

    @property
    def cols(self) -> int:
        return len(self.l0_xs)

    @property
    def regular(self) -> bool:
        return self.lattice

    @property
    def l0_offset(self) -> tuple[int, int]:
        return (int(self.l0_ys[0]), int(self.l0_xs[0])) if self.rows and self.cols else (0, 0)

    def l0_y(self, tile_row: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.l0_ys[tile_row]
        return found

    def l0_x(self, tile_col: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.l0_xs[tile_col]
        return found


def tiles_at(
    grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64], l0_y: NDArray[np.float64], l0_x: NDArray[np.float64]
) -> NDArray[np.int64]:
    """(h, w) which of the tiles has its centre nearest to each place, -1 where none reaches: every picture of values of tiles is made of this.

    Parameters
    ----------
    grid : TileGrid
        Where tiles lie.
    tile_row, tile_col : (n,) int64
        The tiles that there are.
    l0_y, l0_x : (h,) and (w,) float64
        Places, level-0 px, ascending.
    """
    if not grid.regular:
        return placed_at(grid.l0_y(tile_row), grid.l0_x(tile_col), grid.l0_extent, l0_y, l0_x)
    table = np.full((grid.rows + 1, grid.cols + 1), -1, np.int64)
    table[tile_row, tile_col] = np.arange(len(tile_row))
    found: NDArray[np.int64] = table[grid.nearest_rows(l0_y)[:, None], grid.nearest_cols(l0_x)]  # -1 is the last, where there is no tile
    return found


def placed_at(
    tile_y: NDArray[np.int64], tile_x: NDArray[np.int64], l0_extent: float, l0_y: NDArray[np.float64], l0_x: NDArray[np.float64]
) -> NDArray[np.int64]:
    """As `tiles_at`, for tiles on no lattice whose top-lefts are at `tile_y` and `tile_x`; each has at least the place that is next to its centre."""
    found = np.full((len(l0_y), len(l0_x)), -1, np.int64)
    if not found.size:
        return found
    away = np.full(found.shape, np.inf, np.float32)
    spans = []
    for starts, places in ((tile_y, l0_y), (tile_x, l0_x)):
        first, last = np.searchsorted(places, starts), np.searchsorted(places, starts + l0_extent)
        middle = np.minimum(np.searchsorted(places, starts + l0_extent / 2), len(places) - 1)
        spans.append(
            zip(*(np.where(first < last, at, narrow).tolist() for at, narrow in ((first, middle), (last, middle + 1))), strict=True)
        )
    centres = zip((tile_y + l0_extent / 2).tolist(), (tile_x + l0_extent / 2).tolist(), strict=True)
    for tile, ((top, bottom), (left, right), (y, x)) in enumerate(zip(*spans, centres, strict=True)):
        part = slice(top, bottom), slice(left, right)
        here = np.maximum(np.abs(l0_y[part[0]] - y)[:, None], np.abs(l0_x[part[1]] - x)).astype(np.float32)
        nearer = here < away[part]
        away[part][nearer], found[part][nearer] = here[nearer], tile
    return found
