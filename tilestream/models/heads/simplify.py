"""Simpler rings whose shared borders stay shared: both regions of a border simplify it in the same direction, from and to the same corners.

Source of the line simplification: Douglas and Peucker 1973, as GEOS has it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def simplify_rings(corners: Places, offsets: Places, kept: NDArray[np.bool_], tolerance: float) -> tuple[NDArray[np.float64], Places]:
    """Rings of fewer corners, at most `tolerance` px off: (v, 2) corners and (r + 1,) offsets, as they come.

    `kept` (v,) are corners where three regions meet; between two of them a border has two sides. A ring without any begins at a corner that is
    the same from both sides.
    """
    import shapely

    arcs, lengths, ring_of_arc = _arcs(offsets, kept)
    points = corners[arcs].astype(np.float64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    turned = _runs_back(points, starts, ends)
    lines = shapely.linestrings(points, indices=np.repeat(np.arange(len(lengths)), lengths))
    exact = np.where(turned, shapely.reverse(lines), lines)
    simple = shapely.simplify(exact, tolerance, preserve_topology=False)
    closed = shapely.is_closed(exact)
    sound = shapely.is_simple(simple) & (~closed | (shapely.get_num_points(simple) > 3)) & (shapely.get_num_points(simple) > 1)
    simple = np.where(sound, simple, exact)
    simple = np.where(turned, shapely.reverse(simple), simple)
    found, of = shapely.get_coordinates(simple, return_index=True)
    last = np.flatnonzero(np.diff(of, append=-1))  # of each arc: the first of the next
    found, of = np.delete(found, last, axis=0), np.delete(of, last)
    counts = np.bincount(ring_of_arc[of], minlength=len(offsets) - 1)
    return found, np.concatenate([[0], np.cumsum(counts)])


def _arcs(offsets: Places, kept: NDArray[np.bool_]) -> tuple[Places, Places, Places]:
    """Indices of the corners of all arcs, one after the other, both ends included; (a,) their lengths, and the rings that they are of."""
    pieces: list[Places] = []
    rings: list[int] = []
    for ring, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        cuts = np.flatnonzero(kept[begin:end])
        first = int(cuts[0]) if len(cuts) else 0
        whole = begin + (np.arange(end - begin + 1) + first) % (end - begin)
        bounds = [*(cuts - first).tolist(), end - begin] if len(cuts) else [0, end - begin]
        for a, b in pairwise(bounds):
            pieces.append(whole[a : b + 1])
            rings.append(ring)
    return np.concatenate(pieces), np.array([len(piece) for piece in pieces], np.int64), np.array(rings, np.int64)


def _runs_back(points: NDArray[np.float64], starts: Places, ends: Places) -> NDArray[np.bool_]:
    """(a,) which arcs are to be turned round, so that both sides of a border see the same one."""
    turned = np.zeros(len(starts), np.bool_)
    undecided = np.ones(len(starts), np.bool_)
    for step in (0, 1):  # the ends, and where they are one, the corners beside them
        for axis in (1, 0):
            a, b = points[starts + step, axis], points[ends - 1 - step, axis]
            turned |= undecided & (a > b)
            undecided &= a == b
    return turned
