"""A STAC item that points to the embeddings of a slide.

Sources: STAC 1.1 (item), the extensions projection 2.0, processing 1.2 and embeddings 0.0.1 (stac-extensions on GitHub), whose asset is called `embeddings`.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tilestream.errors import InputError
from tilestream.interop.geo.place import cells_of, chip_layout, ground_size, map_of, model_uri, source_uri
from tilestream.interop.geojson import turn_of
from tilestream.interop.omezarr import grid_shape
from tilestream.interop.target import Target, Written
from tilestream.store.ledger import COMPLETE
from tilestream.store.slide import Slide

EXTENSIONS = [
    "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
]

EDGE_POINTS = 20
"""Points of an edge of the image by which its extent in degrees is found: edges are curved there."""

WHEN = "datetime"
"""Column of the list of slides that says when an image was taken."""


def write_stac_item(slide: Slide, target: Target) -> Written:
    """An item whose geometry is the image's, in degrees of WGS 84 and against the clock, and whose asset `embeddings` is the store, by a path relative to the item.

    Raises
    ------
    InputError
        Its image lies on no map that says its CRS, its tiles on no grid, or the list of slides gives no date in its column `datetime`.
    ConfigError
        pyproj is not installed.
    """
    on_map = map_of(slide)
    if not on_map.crs:
        raise InputError(
            f"{slide.id}: its map does not say its CRS, and a STAC item lies in degrees. Set it in the raster: gdal_edit -a_srs."
        )
    height, width = slide.size.height, slide.size.width
    steps = np.linspace(0, 1, EDGE_POINTS + 1)[:-1]
    edge = [*((s * width, 0) for s in steps), *((width, s * height) for s in steps), *((width * (1 - s), height) for s in steps), *((0, height * (1 - s)) for s in steps)]  # fmt: skip
    degrees = on_map.degrees(np.array(edge, np.float64))
    corners = degrees[::EDGE_POINTS]
    ring = (corners if turn_of(np.concatenate([corners, corners[:1]])) > 0 else corners[::-1]).tolist()
    written = datetime.fromtimestamp(_written(slide), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    taken = _taken(slide)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": slide.id,
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "bbox": [*degrees.min(axis=0).tolist(), *degrees.max(axis=0).tolist()],
        "properties": {"datetime": taken or written, "processing:datetime": written, **_properties(slide)},
        "links": [{"rel": "emb:model", "href": model_uri(slide)}, {"rel": "emb:source-data", "href": source_uri(slide)}],
        "assets": {"embeddings": {"href": _href(slide, target), "type": "application/vnd.zarr; version=3", "roles": ["data"]}},
    }
    with target.writing() as path:
        path.write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")
    notes = () if taken else (f"datetime is when it was embedded: the list of slides has no column {WHEN}",)
    found = Written.without_failed(slide)
    return Written(found.tiles, (*found.notes, *notes))


def _taken(slide: Slide) -> str:
    """When the image was taken, by the list of slides; "" where that does not say. Raises InputError where it says no date."""
    said = slide.listed.get(WHEN, "").strip()
    if not said:
        return ""
    try:
        found = datetime.fromisoformat(said)
    except ValueError as error:
        raise InputError(
            f"{slide.id}: the column {WHEN} of the list of slides says {said!r}. Write dates as 2026-03-10 or 2026-03-10T10:00:00Z."
        ) from error
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _written(slide: Slide) -> float:
    """When the store was finished, in seconds since 1970; now where it lies in a bucket."""
    mark = None if slide.folder.local is None else slide.folder.local / COMPLETE
    return mark.stat().st_mtime if mark is not None else datetime.now(UTC).timestamp()


def _properties(slide: Slide) -> dict[str, Any]:
    cells, shape = cells_of(slide), grid_shape(slide)
    size = ground_size(cells)
    crs = {"proj:code": cells.code} if cells.code else {"proj:wkt2": cells.wkt}
    return {
        **({} if size is None else {"gsd": size}),
        "data_type": str(slide.layout.dtype),
        "emb:type": "chip",
        "emb:dimensions": int(slide.vectors().shape[1]),
        "emb:chip_layout": chip_layout(slide),
        "emb:runtime_parameters": {
            "tiles": slide.recipe["tiles"],
            "encoder": slide.recipe["encoder"],
            "source": slide.recipe.get("source"),
        },
        **crs,
        "proj:shape": list(shape),
        "proj:transform": list(cells.transform),
    }


def _href(slide: Slide, target: Target) -> str:
    """The store, relative to the item where both lie on a disk."""
    if slide.folder.local is None:
        return slide.path
    return os.path.relpath(slide.folder.local.absolute(), target.path.absolute().parent).replace(os.sep, "/")
