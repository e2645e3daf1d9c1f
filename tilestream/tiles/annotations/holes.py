"""Holes that lie over one another, or over the border of their polygon: what is in one is out all the same (RFC 7946, section 3.1.6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tilestream.tiles.annotations.shapes import Ring

ROUNDING = 1e-9
"""Part of an area that is none."""


def without_holes(rings: tuple[Ring, ...]) -> Iterator[tuple[Ring, ...]]:
    """Polygons, inside which an odd number of rings goes round, that hold what lies in the first ring and in no hole of it.

    Rings that lie beside the first one are no holes of it; they are polygons of their own, with holes of their own.
    """
    import shapely  # few files have holes

    if shapely.Polygon(rings[0], rings[1:]).is_valid:
        yield rings
        return
    border, *others = (shapely.make_valid(shapely.Polygon(ring)) for ring in rings)
    within = [border.intersection(other).area > ROUNDING * other.area for other in others]
    holes = [hole for hole, inside in zip(others, within, strict=True) if inside]
    out = shapely.union_all(holes)
    least = (1 - ROUNDING) * sum(hole.area for hole in holes)
    if border.intersection(out).area >= least:  # neither do holes lie over one another, nor beyond the border
        yield rings
        return
    for polygon in _polygons(border.difference(out)):
        yield tuple(shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors))
    if beside := tuple(ring for ring, inside in zip(rings[1:], within, strict=True) if not inside):
        yield beside


def _polygons(found: Any) -> Iterator[Any]:
    """The polygons of a geometry, without the lines and points that are left where borders touch."""
    if found.geom_type == "Polygon" and not found.is_empty:
        yield found
    for part in getattr(found, "geoms", ()):
        yield from _polygons(part)
