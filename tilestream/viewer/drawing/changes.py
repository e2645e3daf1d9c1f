"""Changes of what is drawn on a slide, as the page asks for them; each is read, made and written in one go, and can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon, mapping, shape
from shapely.geometry.base import BaseGeometry

from tilestream.errors import InputError
from tilestream.viewer.drawing.regions import Regions, class_of, colour_of, squares
from tilestream.viewer.slide import ViewedSlide

MOST_CORNERS = 100_000
"""Corners of a line that is drawn in one go."""


def change_regions(slide: ViewedSlide, folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Make a change, and tell all regions, what the change took away and what it added.

    The file is read anew before each change, so that two pages do not overwrite each other.

    Raises
    ------
    InputError
        The change makes no sense, or the file is none of regions.
    """
    path = folder / f"{slide.id}.geojson"
    regions = Regions.open(path)
    before = dict(regions.features)
    try:
        _CHANGES[str(told.get("op"))](regions, slide, told)
    except (KeyError, TypeError, ValueError, IndexError, shapely.errors.ShapelyError) as error:
        raise InputError(f"This cannot be drawn: {error}") from error
    if list(regions.features) != list(before):
        regions.save()
    classes = regions.classes
    return {
        "file": path.name,
        "regions": [
            {"key": key, "class": class_of(feature), "colour": list(colour_of(class_of(feature), classes)), "polygons": _polygons(feature)}
            for key, feature in regions.features.items()
        ],
        "classes": [{"name": name, "colour": list(colour_of(name, classes))} for name in classes],
        "removed": [feature for key, feature in before.items() if key not in regions.features],
        "added": [key for key in regions.features if key not in before],
    }


def _polygons(feature: dict[str, Any]) -> list[list[list[list[float]]]]:
    """Rings of each polygon of a feature, the outer one first."""
    geometry = mapping(shape(feature["geometry"]))
    found = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [[[[round(float(v), 2) for v in corner[:2]] for corner in ring] for ring in polygon] for polygon in found]


def _corners(told: Any) -> Any:
    corners = np.asarray(told, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not 1 <= len(corners) <= MOST_CORNERS or not np.isfinite(corners).all():
        raise ValueError(f"a line has 1 to {MOST_CORNERS:,} corners of x and y")
    return corners


def _name(told: dict[str, Any]) -> str:
    name = str(told.get("class") or "").strip()
    if not name:
        raise ValueError("write the name of a class first")
    return name[:200]


def _add(regions: Regions, _slide: ViewedSlide, told: dict[str, Any]) -> None:
    """The outline that was closed."""
    corners = _corners(told["path"])
    if len(corners) < 3:
        raise ValueError("an outline has three corners or more")
    regions.add(_name(told), Polygon(corners))


def _add_tiles(regions: Regions, slide: ViewedSlide, told: dict[str, Any]) -> None:
    """Tiles that are selected, as one region."""
    tiles = np.asarray(told["tiles"], np.int64)
    if not len(tiles) or tiles.min() < 0 or tiles.max() >= slide.layout.tiles:
        raise ValueError("select tiles first")
    regions.add(_name(told), squares(slide.y[tiles], slide.x[tiles], slide.l0_extent))


def _brush(regions: Regions, _slide: ViewedSlide, told: dict[str, Any]) -> None:
    """A stroke: it joins the region of its class in which it begins, or is one of its own; erasing, it is cut out of all."""
    corners, radius = _corners(told["path"]), float(told["radius"])
    if not 0 < radius < 1e7:
        raise ValueError(f"a brush has a radius above 0, not {radius}")
    line = LineString(corners) if len(corners) > 1 else Point(corners[0])
    stroke: BaseGeometry = line.buffer(radius, quad_segs=8).simplify(radius / 50)
    if told.get("erase"):
        for key, feature in list(regions.features.items()):
            region = shapely.make_valid(shape(feature["geometry"]))
            if region.intersects(stroke):
                regions.remove([key])
                regions.put(region.difference(stroke), feature)
        return
    name, start = _name(told), Point(corners[0]).buffer(radius)
    for key, feature in list(regions.features.items()):
        region = shapely.make_valid(shape(feature["geometry"]))
        if class_of(feature) == name and region.intersects(start):
            regions.remove([key])
            regions.put(region.union(stroke), feature)
            return
    regions.add(name, stroke)


def _erase(regions: Regions, _slide: ViewedSlide, told: dict[str, Any]) -> None:
    """Take away what lies under a click."""
    at = Point(_corners([told["at"]])[0])
    regions.remove([key for key, found in regions.features.items() if shapely.covers(shape(found["geometry"]), at)])


def _swap(regions: Regions, _slide: ViewedSlide, told: dict[str, Any]) -> None:
    """Take a change back: without what it added, with what it took away."""
    regions.remove([str(key) for key in told["remove"]])
    for feature in told["add"]:
        regions.put(shape(feature["geometry"]), feature, whole=True)


_CHANGES = {
    "none": lambda *_: None, "add": _add, "tiles": _add_tiles, "brush": _brush, "erase": _erase, "swap": _swap,
}  # fmt: skip
