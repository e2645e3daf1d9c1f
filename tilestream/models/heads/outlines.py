"""Exact outlines of label images that come block by block, as polygons: their areas are the counts of pixels.

A pixel's border is four unit edges; an edge between two pixels of one region is none. Regions are 4-connected pixels of one label. Edges of a
region are chained, each end to the next start; where a region meets itself at a corner, the chain turns left, so that no ring touches itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.models.heads.rings import Edges, find_edges, polygons_from_edges

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Outlines:
    """Regions that are complete, m of them."""

    labels: NDArray[np.int64]
    """(m,) label of each."""
    polygons: NDArray[np.object_]
    """(m,) shapely polygons of x, y in px of the image; px (0, 0) begins at (0, 0). Outer rings run in the direction of growing angles, holes against it."""


def trace_labels(labels: Labels, tolerance: float = 0.0) -> Outlines:
    """The outlines of all regions of one label image (h, w); 0 is no label."""
    found = list(trace_blocks([(0, 0, labels)], labels.shape, tolerance))
    return Outlines(
        np.concatenate([each.labels for each in found] or [np.empty(0, np.int64)]),
        np.concatenate([each.polygons for each in found] or [np.empty(0, object)]),
    )


def trace_blocks(blocks: Iterable[tuple[int, int, Labels]], shape: tuple[int, ...], tolerance: float = 0.0) -> Iterator[Outlines]:
    """The outlines of the regions of a label image; each exactly once, soon after its last pixel was seen.

    Order: by block, then by first corner, row by row. Polygons themselves do not depend on how the image was cut.

    Memory bound: a block, one row of labels, and the edges of regions that reach the last row seen.

    Parameters
    ----------
    blocks : iterable of (y, x, (h, w) labels)
        All of the image, row-major; blocks of a row are equally high.
    shape : (height, width)
        Of the image.
    tolerance : float
        Px that outlines may be simplified by; borders that two regions share stay shared.
    """
    tracer = _Tracer(shape[1], tolerance)
    last_row = 0
    for y, x, block in blocks:
        if y != last_row:
            yield from tracer.end_row()
            last_row = y
        # What lies outside the image is no label, and closes what ends there.
        over = [(0, int(start + side >= end)) for start, side, end in zip((y, x), block.shape, shape, strict=True)]
        yield from tracer.add(y, x, np.pad(block, over) if any(more for _, more in over) else block)
    yield from tracer.end_row()


class _Tracer:
    """The state between blocks: the last row seen, the last column of the block to the left, and the edges of regions that are open."""

    def __init__(self, width: int, tolerance: float) -> None:
        self.tolerance = tolerance
        self.above, self.above_region = np.zeros(width + 1, np.int64), np.full(width + 1, -1, np.int64)
        self.left: Labels = np.zeros(0, np.int64)
        self.left_region = np.zeros(0, np.int64)
        self.corner = (0, -1)
        self.parent: dict[int, int] = {}
        self.open: dict[int, list[Edges]] = {}
        self.label: dict[int, int] = {}
        self.regions = 0

    def add(self, y: int, x: int, block: Labels) -> Iterator[Outlines]:
        """Take in a block; the regions that lie wholly in it."""
        height, width = block.shape
        if x == 0:
            self.left, self.left_region, self.corner = np.zeros(height, np.int64), np.full(height, -1, np.int64), (0, -1)
        labels, region = np.zeros((height + 1, width + 1), np.int64), np.full((height + 1, width + 1), -1, np.int64)
        labels[0, 1:], region[0, 1:] = self.above[x : x + width], self.above_region[x : x + width]
        labels[1:, 0], region[1:, 0] = self.left, self.left_region
        labels[0, 0], region[0, 0] = self.corner
        labels[1:, 1:] = block
        first = self.regions
        if block.any():
            from skimage.measure import label

            numbered = label(block, background=0, connectivity=1)
            self.regions += int(numbered.max())
            region[1:, 1:] = np.where(numbered > 0, numbered + (first - 1), -1)
        open_ones = self._join(labels, region, first)
        if labels.any():
            edges = find_edges(labels, region, y, x, marked=self.tolerance > 0)
            edges, kept = edges.split(_is_in(edges.region, open_ones, first, self.regions))
            yield from self._close(edges, region, labels, first)
            self._keep(kept)
        self.corner = (int(self.above[x + width - 1]), int(self.above_region[x + width - 1]))
        self.above[x : x + width], self.above_region[x : x + width] = block[-1], region[-1, 1:]
        self.left, self.left_region = labels[1:, -1].copy(), region[1:, -1].copy()

    def _join(self, labels: NDArray[np.int64], region: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        """Unite regions across the faces to the blocks above and to the left; which regions of the block may go on outside it."""
        pairs = []
        for here, there in ((np.s_[1, 1:], np.s_[0, 1:]), (np.s_[1:, 1], np.s_[1:, 0])):
            same = (labels[here] == labels[there]) & (labels[here] != 0)
            pairs.append(np.stack([region[here][same], region[there][same]], axis=1))
        joined = np.unique(np.concatenate(pairs), axis=0)
        for a, b in joined.tolist():
            low, high = sorted((self._root(a), self._root(b)))
            if low != high:
                self.parent[high] = low
                self.open.setdefault(low, []).extend(self.open.pop(high, []))
        border = np.concatenate([region[-1, 1:], region[1:, -1], joined[:, 0]])
        return np.unique(border[border >= first])

    def _root(self, region: int) -> int:
        """The region that a region is part of by now."""
        root = region
        while (above := self.parent.get(root, root)) != root:
            root = above
        while region != root:
            self.parent[region], region = root, self.parent.get(region, region)
        return root

    def _close(self, edges: Edges, region: NDArray[np.int64], labels: NDArray[np.int64], first: int) -> Iterator[Outlines]:
        """The outlines of regions that lie wholly in a block."""
        if not len(edges):
            return
        flat, where = np.unique(region[1:, 1:], return_index=True)
        of_region = np.zeros(self.regions - first, np.int64)
        mine = flat >= first
        of_region[flat[mine] - first] = labels[1:, 1:].ravel()[where[mine]]
        regions, polygons = polygons_from_edges(edges, self.tolerance)
        yield Outlines(of_region[regions - first], polygons)

    def _keep(self, edges: Edges) -> None:
        """Hold the edges of regions that may go on."""
        for part in edges.by_region():
            self.open.setdefault(self._root(int(part.region[0])), []).append(part)
            self.label[self._root(int(part.region[0]))] = int(part.label[0])

    def end_row(self) -> Iterator[Outlines]:
        """The regions that do not reach the last row that was seen; no block of this row of blocks comes any more."""
        there = np.unique(self.above_region[self.above_region >= 0])
        alias = {region: self._root(region) for region in there.tolist()}
        going_on = set(alias.values())
        done = sorted(set(self.open) - going_on)
        if done:
            parts = [part.renamed(k) for k, root in enumerate(done) for part in self.open.pop(root)]
            _, polygons = polygons_from_edges(Edges.joined(parts), self.tolerance)
            yield Outlines(np.array([self.label[root] for root in done], np.int64), polygons)
        if there.size:
            names = np.array(list(alias.values()), np.int64)
            at = np.searchsorted(there, self.above_region)
            self.above_region = np.where(self.above_region >= 0, names[np.minimum(at, len(names) - 1)], -1)
        self.parent, self.label = {}, {root: self.label[root] for root in self.open}


def _is_in(region: NDArray[np.int64], wanted: NDArray[np.int64], first: int, end: int) -> NDArray[np.bool_]:
    """Whether each region goes on: those of earlier blocks, and of `first` to `end` the wanted ones."""
    listed = np.zeros(end - first, np.bool_)
    listed[wanted - first] = True
    return (region < first) | listed[np.maximum(region - first, 0)] if end > first else np.ones(len(region), np.bool_)
