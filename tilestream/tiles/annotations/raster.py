"""Polygons on a raster: one pass over the edges of all of them, exact at the centres of the pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tilestream.tiles.annotations.shapes import Ring, Shape

MOST_EDGES = 1 << 18
"""Edges that are gathered before they are drawn."""

MOST_CROSSINGS = 1 << 22
"""Places where edges cross the middle of a pixel row, held at once; about 60 bytes each."""

SMALL = 2.0
"""Side, px, of the box of a polygon that marks a pixel although it holds no centre of one: a nucleus must not vanish."""

Mask = NDArray[np.bool_]


class Canvas:
    """Counts how many polygons lie over each pixel: differences along rows, summed when the mask is asked for.

    Memory bound: 4 bytes a pixel, the gathered edges (16 MiB and the largest polygon) and `MOST_CROSSINGS` crossings (250 MiB).
    """

    def __init__(self, shape: tuple[int, int], downsample: float, corner: tuple[float, float] = (0.0, 0.0)) -> None:
        """A raster of `shape` whose pixels are `downsample` level-0 px wide; `corner` is the level-0 y, x from which polygons count."""
        self.shape, self.downsample, self.corner = shape, downsample, corner
        self.steps = np.zeros((shape[0], shape[1] + 1), np.int32)
        self.rings: list[Ring] = []
        self.owners: list[int] = []
        self.edges, self.polygons = 0, 0

    def add(self, shape: Shape) -> None:
        """Draw a region over what is there."""
        if not shape.cuts:
            self.add_polygons(shape.polygons)
            return
        inside, outside = (Canvas(self.shape, self.downsample, self.corner) for _ in range(2))
        inside.add_polygons(shape.polygons)
        outside.add_polygons(shape.cuts)
        left = np.zeros(self.steps.shape, np.int8)
        left[:, :-1] = inside.mask() & ~outside.mask()
        self.steps += np.diff(left, axis=1, prepend=np.int8(0))

    def mask(self) -> Mask:
        """(h, w) bool: which pixels have their centre in a polygon. The canvas is used up."""
        self._draw()
        np.cumsum(self.steps, axis=1, out=self.steps)
        covered: Mask = self.steps[:, :-1] > 0
        return covered

    def add_polygons(self, polygons: Iterable[tuple[Ring, ...]]) -> None:
        """Draw polygons, each the rings of its border and holes."""
        for rings in polygons:
            for ring in rings:
                self.rings.append(ring)
                self.owners.append(self.polygons)
                self.edges += len(ring)
            self.polygons += 1
            if self.edges >= MOST_EDGES:
                self._draw()

    def _draw(self) -> None:
        """Draw what was gathered."""
        if not self.rings:
            return
        lengths = np.array([len(ring) for ring in self.rings])
        start = np.concatenate(self.rings)
        ends = np.cumsum(lengths)
        following = np.arange(1, len(start) + 1)
        following[ends - 1] = ends - lengths
        y, x = (start[:, 1] + self.corner[0]) / self.downsample, (start[:, 0] + self.corner[1]) / self.downsample
        owner = np.repeat(np.array(self.owners), lengths)
        edges = np.stack([y, x, y[following], x[following]])
        filled = self._draw_rows(edges, owner, 0, self.shape[0])
        self._mark_small(y, x, owner, filled)
        self.rings, self.owners, self.edges, self.polygons = [], [], 0, 0

    def _draw_rows(self, edges: NDArray[np.float64], owner: NDArray[np.int64], top: int, bottom: int) -> NDArray[np.int64]:
        """Draw edges (y, x, y, x) on the rows from `top` to `bottom`; (polygons,) number of pixels that each covers.

        In a row each polygon is entered and left in turn (even-odd), so that the crossings, in order, are a step up, a step down, and so on.
        """
        low = np.clip(np.ceil(np.minimum(edges[0], edges[2]) - 0.5), top, bottom).astype(np.int64)
        high = np.clip(np.ceil(np.maximum(edges[0], edges[2]) - 0.5), top, bottom).astype(np.int64)
        count = high - low
        total = int(count.sum())
        if total > MOST_CROSSINGS and bottom - top > 1:
            middle = (top + bottom) // 2
            return self._draw_rows(edges, owner, top, middle) + self._draw_rows(edges, owner, middle, bottom)
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + low[edge]
        y0, x0, y1, x1 = edges[:, edge]
        crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        order = np.lexsort((crossing, row, owner[edge]))
        column = np.clip(np.ceil(crossing[order] - 0.5), 0, self.shape[1]).astype(np.int64)
        sign = 1 - 2 * (np.arange(total) % 2)
        np.add.at(self.steps.reshape(-1), row[order] * self.steps.shape[1] + column, sign.astype(np.int32))
        return np.bincount(owner[edge][order], -sign * column, minlength=int(owner[-1]) + 1).astype(np.int64)

    def _mark_small(self, y: NDArray[np.float64], x: NDArray[np.float64], owner: NDArray[np.int64], filled: NDArray[np.int64]) -> None:
        """Mark the pixel of every small polygon that holds no pixel's centre."""
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        spans = [(np.minimum.reduceat(axis, first), np.maximum.reduceat(axis, first)) for axis in (y, x)]
        row, column = (np.floor((low + high) / 2) for low, high in spans)
        small = (filled[owner[first]] == 0) & np.logical_and.reduce([high - low <= SMALL for low, high in spans])
        small &= (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        row, column = row[small].astype(np.int64), column[small].astype(np.int64)
        np.add.at(self.steps, (row, column), 1)
        np.add.at(self.steps, (row, column + 1), -1)
