"""Which tiles the middles of objects lie in, and how many lie in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True)
class TilePlaces:
    """The tiles of a slide: squares of `l0_extent` at (n,) level-0 places, ascending in y."""

    l0_y: Places
    l0_x: Places
    l0_extent: float

    def near(self, y0: float, x0: float, y1: float, x1: float) -> Places:
        """(k,) numbers of the tiles that a region may meet, ascending."""
        first, end = np.searchsorted(self.l0_y, [y0 - self.l0_extent, y1]).tolist()
        x = self.l0_x[first:end]
        found: Places = first + np.flatnonzero((x > x0 - self.l0_extent - 1) & (x <= x1))
        return found

    def pairs(self, points: NDArray[np.float64]) -> tuple[Places, Places]:
        """(p,) points, of (m, 2) y, x in level-0 px, and the tile that each lies in: one pair for each tile that it lies in."""
        import shapely

        if not len(points):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        (y0, x0), (y1, x1) = points.min(axis=0), points.max(axis=0)
        tiles = self.near(y0, x0, y1, x1)
        y, x = self.l0_y[tiles].astype(np.float64), self.l0_x[tiles].astype(np.float64)
        tree = shapely.STRtree(shapely.box(x, y, x + self.l0_extent, y + self.l0_extent))
        point, near = tree.query(shapely.points(points[:, 1], points[:, 0]))
        inside = np.ones(len(point), np.bool_)
        for start, place in ((y, points[:, 0]), (x, points[:, 1])):  # a border belongs to the tile that begins there
            inside &= (place[point] >= start[near]) & (place[point] < start[near] + self.l0_extent)
        return point[inside], tiles[near[inside]]

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(m,) whether points (m, 2) y, x lie in any tile."""
        held = np.zeros(len(points), np.bool_)
        held[self.pairs(points)[0]] = True
        return held


def count_in_tiles(tiles: TilePlaces, points: NDArray[np.float64], classes: Places, counts: NDArray[np.float32]) -> None:
    """Add objects at (m, 2) y, x of (m,) classes to the counts (n, C) of the tiles that they lie in."""
    point, tile = tiles.pairs(points)
    np.add.at(counts, (tile, classes[point]), 1)
