"""A selection of tiles as a file that a person keeps: a table, tiles as GeoJSON, or one region with a class, which `fit` takes."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.store.layout import STATUSES, tile_names
from tilestream.viewer.drawing.regions import region_feature, squares
from tilestream.viewer.slide import ViewedSlide


def selection_file(slide: ViewedSlide, told: dict[str, Any]) -> tuple[str, str, bytes]:
    """Name, media type and bytes of the file of a selection.

    Raises
    ------
    InputError
        What was told is no selection of the slide's tiles.
    """
    tiles, label, kind = tiles_told(slide, told), str(told.get("class") or ""), told.get("as")
    name = "".join(each if each.isalnum() or each in "-_." else "_" for each in slide.id)
    if kind == "csv":
        return f"{name}-selection.csv", "text/csv; charset=utf-8", _table(slide, tiles, label).encode()
    if kind == "geojson":
        return f"{name}-tiles.geojson", "application/geo+json", _collection(_tile_features(slide, tiles, label))
    if kind == "labels":
        if not label:
            raise InputError("Labels need the name of a class: write it first.")
        whole = squares(slide.y[tiles], slide.x[tiles], slide.l0_extent)
        return f"{name}.geojson", "application/geo+json", _collection([region_feature(label, whole, [])])
    raise InputError(f"A selection is kept as csv, geojson or labels, not as {kind!r}.")


def tiles_told(slide: ViewedSlide, told: dict[str, Any]) -> NDArray[np.int64]:
    """Numbers of the tiles that the page names, in order.

    Raises
    ------
    InputError
        They are not tiles of the slide.
    """
    named = told.get("tiles")
    whole = isinstance(named, list) and all(isinstance(each, int) and 0 <= each < slide.layout.tiles for each in named)
    if not named or not whole:
        raise InputError(f"A selection is a list of numbers of tiles, 0 to {slide.layout.tiles - 1}, and not empty.")
    return np.unique(np.asarray(named, np.int64))


def _table(slide: ViewedSlide, tiles: NDArray[np.int64], label: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["tile", "slide", "row", "col", "y", "x", "status", "tissue", "class"])
    names = tile_names(slide.id, slide.row[tiles], slide.col[tiles])
    for name, tile in zip(names, tiles.tolist(), strict=True):
        places = [int(column[tile]) for column in (slide.row, slide.col, slide.y, slide.x)]
        writer.writerow([name, slide.id, *places, _status(slide, tile), f"{slide.tissue[tile]:.4g}", label])
    return out.getvalue()


def _tile_features(slide: ViewedSlide, tiles: NDArray[np.int64], label: str) -> list[dict[str, Any]]:
    """Each tile as an object of type `tile`."""
    found = []
    for tile in tiles.tolist():
        y, x, side = float(slide.y[tile]), float(slide.x[tile]), slide.l0_extent
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        properties: dict[str, Any] = {"objectType": "tile", "measurements": {"row": int(slide.row[tile]), "col": int(slide.col[tile])}}
        if label:
            properties["classification"] = {"name": label}
        found.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties})
    return found


def _status(slide: ViewedSlide, tile: int) -> str:
    code = int(slide.status[tile])
    return STATUSES[code] if code >= 0 else "not written yet"


def _collection(features: list[dict[str, Any]]) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False).encode()
