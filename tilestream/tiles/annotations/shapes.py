"""One drawn region, and what every reader of drawn regions holds its numbers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError

FURTHEST = 2.0**31
"""Largest coordinate, level-0 px, that is believed."""

THIN = 1e-9
"""Width of a ring, as a part of its length, up to which it is a line; far below what coordinates are rounded to."""

FLAT = "polygons or rings of fewer than three distinct corners, or with all of them on one line"
"""What people's tools write of a click, or of a line that was meant as an area, in words."""

Ring = NDArray[np.float64]
"""(k, 2) corners x, y in level-0 px, its end joined to its start."""


@dataclass(frozen=True)
class Shape:
    """A region of one class: what lies in any of its polygons, less what lies in any of its cuts."""

    name: str
    """The class; "" where it has none."""
    polygons: tuple[tuple[Ring, ...], ...]
    """Each the rings of one polygon, borders and holes: inside is what an odd number of them goes round."""
    cuts: tuple[tuple[Ring, ...], ...] = ()
    """Polygons that are taken out of this region alone."""
    left_out: tuple[str, ...] = ()
    """What was found with it and covers nothing, each in words such as `FLAT`; it stands in none of the others."""


def ring_from_corners(corners: Sequence[Any], where: str) -> Ring:
    """A ring of any number of corners, each two numbers or more; it may cover nothing (`covers_nothing`).

    Raises
    ------
    InputError
        With `where` before what is wrong.
    """
    if isinstance(corners, list) and not corners:
        return np.zeros((0, 2))
    try:
        ring = np.asarray(corners)
    except (ValueError, OverflowError):  # corners of different lengths, numbers of hundreds of digits
        ring = np.zeros(0, object)
    if ring.ndim != 2 or ring.shape[1] < 2 or ring.dtype.kind not in "iuf":
        raise InputError(f"{where}: a ring must be a list of corners [x, y] in level-0 px, but here is {str(corners)[:60]}.")
    ring = ring[:, :2].astype(np.float64)
    far = ~(np.abs(ring) <= FURTHEST)
    if far.any():
        raise InputError(f"{where}: a corner lies at {ring[far][0]:g}, but level-0 px are numbers up to {FURTHEST:.0f}.")
    return ring


def covers_nothing(ring: Ring) -> bool:
    """Whether a ring has fewer than three distinct corners, or all of them on one line."""
    if len(ring) < 3:
        return True
    offset = ring - ring[0]
    lengths = (offset**2).sum(axis=1)
    furthest = offset[lengths.argmax()]
    across = np.abs(offset[:, 0] * furthest[1] - offset[:, 1] * furthest[0])  # length x distance from the line to the furthest corner
    return bool(across.max() <= THIN * lengths.max())
