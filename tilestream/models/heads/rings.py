"""From the edges of pixels to the rings of regions, and to polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARK, EAST, SOUTH, WEST, NORTH = range(-1, 4)
"""Directions of an edge, y growing to the south: a region lies on the right of its edges. A mark is a corner where three regions meet, or two cross."""

EDGE = np.dtype([("region", "i8"), ("label", "i8"), ("way", "i1"), ("y", "i4"), ("x", "i4"), ("y1", "i4"), ("x1", "i4")])
"""A straight run of unit edges of one region from (y, x) to (y1, x1)."""

Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Edges:
    """Runs of edges, (n,) `EDGE`."""

    runs: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def region(self) -> NDArray[np.int64]:
        """(n,) the region that each is the border of."""
        found: NDArray[np.int64] = self.runs["region"]
        return found

    @property
    def label(self) -> NDArray[np.int64]:
        """(n,) the label of that region."""
        found: NDArray[np.int64] = self.runs["label"]
        return found

    @classmethod
    def joined(cls, parts: Sequence[Edges]) -> Edges:
        """All runs of several."""
        return cls(np.concatenate([part.runs for part in parts]))

    def split(self, second: Flags) -> tuple[Edges, Edges]:
        """The runs where `second` (n,) is false, and those where it is true."""
        return Edges(self.runs[~second]), Edges(self.runs[second])

    def renamed(self, region: int) -> Edges:
        """The same as the border of another region."""
        runs = self.runs.copy()
        runs["region"] = region
        return Edges(runs)

    def by_region(self) -> Iterator[Edges]:
        """The runs of each region."""
        ordered = self.runs[np.argsort(self.region, kind="stable")]
        cuts = np.flatnonzero(np.diff(ordered["region"])) + 1
        return (Edges(part) for part in np.split(ordered, cuts) if len(part))


def find_edges(labels: NDArray[np.int64], region: NDArray[np.int64], y: int, x: int, *, marked: bool) -> Edges:
    """The edges of an (h + 1, w + 1) piece of a label image whose first row and column are its neighbours' last ones; pixel (1, 1) is (y, x).

    Edges on the top and left border of the piece are among them; those on its bottom and right border are the next piece's. With `marked`, the
    corners where more than two edges meet are among them too, and runs end there.
    """
    a, b, c, d = labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]
    corners = np.zeros(a.shape, np.bool_)
    if marked:
        corners = (a != b).astype(np.int8) + (c != d) + (a != c) + (b != d) > 2
    parts = [_runs(labels, region, corners, lower=lower, turned=False) for lower in (True, False)]
    parts += [_runs(labels.T, region.T, corners.T, lower=lower, turned=True) for lower in (True, False)]
    parts += [_marks(corners, labels[rows, cols], region[rows, cols])
              for rows in (slice(-1), slice(1, None)) for cols in (slice(-1), slice(1, None))]  # fmt: skip
    found = np.concatenate(parts)
    for name, shift in (("y", y), ("y1", y), ("x", x), ("x1", x)):
        found[name] += shift
    return Edges(found)


def _runs(labels: NDArray[np.int64], region: NDArray[np.int64], corners: Flags, *, lower: bool, turned: bool) -> NDArray[np.void]:
    """Runs along lines between rows, as the border of the pixels below or above them; `turned` where rows stand for columns."""
    here, there = (slice(1, None), slice(-1)) if lower else (slice(-1), slice(1, None))
    mine = labels[here, 1:]
    of = np.where((mine != labels[there, 1:]) & (mine != 0), region[here, 1:], -1)
    before, after = (np.full_like(of, -1) for _ in range(2))
    before[:, 1:], after[:, :-1] = of[:, :-1], of[:, 1:]
    cut_before, cut_after = corners.copy(), np.zeros_like(corners)
    cut_after[:, :-1] = corners[:, 1:]
    line, begin = np.nonzero((of >= 0) & ((of != before) | cut_before))
    _, last = np.nonzero((of >= 0) & ((of != after) | cut_after))
    found = np.empty(len(line), EDGE)
    found["region"], found["label"] = of[line, begin], mine[line, begin]
    forward = lower != turned
    found["way"] = (NORTH if lower else SOUTH) if turned else (EAST if lower else WEST)
    start, end = (begin, last + 1) if forward else (last + 1, begin)
    places = (start, line, end, line) if turned else (line, start, line, end)
    found["y"], found["x"], found["y1"], found["x1"] = places
    return found


def _marks(corners: Flags, labels: NDArray[np.int64], region: NDArray[np.int64]) -> NDArray[np.void]:
    """The corners of regions that are to stay where they are."""
    y, x = np.nonzero(corners & (labels != 0))
    found = np.empty(len(y), EDGE)
    found["region"], found["label"], found["way"] = region[y, x], labels[y, x], MARK
    found["y"], found["x"], found["y1"], found["x1"] = y, x, y, x
    return found


@dataclass(frozen=True)
class _Keys:
    """One number for each region and corner, in the order of region, y, x."""

    regions: Places
    y0: int
    x0: int
    height: int
    width: int

    @classmethod
    def of(cls, runs: NDArray[np.void]) -> _Keys:
        y0, x0 = int(runs["y"].min()), int(runs["x"].min())
        return cls(np.unique(runs["region"]), y0, x0, int(runs["y"].max()) - y0 + 1, int(runs["x"].max()) - x0 + 1)

    def at(self, region: Places, y: Places, x: Places) -> Places:
        rank = np.searchsorted(self.regions, region)
        found: Places = (rank * self.height + (y - self.y0)) * self.width + (x - self.x0)
        return found


@dataclass(frozen=True)
class _Rings:
    """Rings of corners, one after the other, open at their ends."""

    region: Places
    """(r,) of each ring."""
    corners: Places
    """(v, 2) x, y."""
    offsets: Places
    """(r + 1,) where each ring begins."""
    kept: Flags
    """(v,) which corners are to stay where they are."""


def polygons_from_edges(edges: Edges, tolerance: float) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """(m,) regions, ascending, and their polygons; the edges of each region are complete."""
    rings = _chain(edges.runs)
    exact = _polygons(rings.region, rings.corners, rings.offsets)
    regions = np.unique(rings.region)
    if tolerance <= 0:
        return regions, exact
    import shapely

    from tilestream.models.heads.simplify import simplify_rings

    corners, offsets = simplify_rings(rings.corners, rings.offsets, rings.kept, tolerance)
    simple = _polygons(rings.region, corners, offsets)
    return regions, np.where(shapely.is_valid(simple), simple, exact)


def _chain(runs: NDArray[np.void]) -> _Rings:
    """Chain runs into rings; each begins at its first corner, row by row."""
    marks, runs = runs[runs["way"] == MARK], runs[runs["way"] != MARK]
    keys = _Keys.of(runs)
    start = keys.at(runs["region"], runs["y"], runs["x"])
    order = np.lexsort((runs["way"], start))
    runs, start = runs[order], start[order]
    end = keys.at(runs["region"], runs["y1"], runs["x1"])
    following = np.searchsorted(start, end)
    other = np.minimum(following + 1, len(start) - 1)
    # Two ways on: a region that meets itself at a corner. To the left, so that no ring touches itself.
    left = (start[other] == end) & (runs["way"][other] == (runs["way"] + 3) % 4)
    sequence, offsets = _cycles(np.where(left, other, following))
    ordered, way = runs[sequence], runs["way"][sequence]
    kept = np.isin(start[sequence], keys.at(marks["region"], marks["y"], marks["x"])) if len(marks) else np.zeros(len(ordered), np.bool_)
    before = np.roll(way, 1)
    before[offsets[:-1]] = way[offsets[1:] - 1]
    stays = (way != before) | kept
    counts = np.add.reduceat(stays, offsets[:-1])
    corners = np.stack([ordered["x"][stays], ordered["y"][stays]], axis=1).astype(np.int64)
    return _Rings(ordered["region"][offsets[:-1]], corners, np.concatenate([[0], np.cumsum(counts)]), kept[stays])


def _cycles(following: Places) -> tuple[Places, Places]:
    """The cycles of a permutation: its elements cycle by cycle, and (c + 1,) where each begins; the first of each is its least."""
    onward, seen = following.tolist(), bytearray(len(following))
    sequence, offsets = [], [0]
    for first in range(len(onward)):
        if seen[first]:
            continue
        k = first
        while not seen[k]:
            seen[k] = 1
            sequence.append(k)
            k = onward[k]
        offsets.append(len(sequence))
    return np.array(sequence, np.int64), np.array(offsets, np.int64)


def _polygons(region: Places, corners: NDArray[np.int64] | NDArray[np.float64], offsets: Places) -> NDArray[np.object_]:
    """(m,) polygons of the regions in ascending order: of each one outer ring, then its holes."""
    import shapely

    lengths = np.diff(offsets)
    ring = np.repeat(np.arange(len(lengths)), lengths)
    onward = np.arange(len(corners)) + 1
    onward[offsets[1:] - 1] = offsets[:-1]
    (x, y), (x1, y1) = corners.astype(np.float64).T, corners[onward].astype(np.float64).T
    twice = np.bincount(ring, x * y1 - x1 * y, minlength=len(lengths))
    order = np.lexsort((np.arange(len(lengths)), twice < 0, region))
    closed = np.concatenate([np.append(np.arange(a, b), a) for a, b in zip(offsets[:-1][order], offsets[1:][order], strict=True)])
    ends = np.concatenate([[0], np.cumsum(lengths[order] + 1)])
    starts = np.flatnonzero(np.diff(region[order], prepend=region[order][0] - 1))
    found: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, corners[closed].astype(np.float64), (ends, np.append(starts, len(lengths)))
    )
    return found
