"""Footprints and embeddings as GeoParquet, a row a tile: id, embedding, geometry.

Sources: https://geoparquet.org/releases/v1.1.0/ and https://geoembeddings.org.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.interop.columns import load_pyarrow
from tilestream.interop.geo.place import map_of, model_uri, source_uri
from tilestream.interop.on_map import MapPlaces, polygons_of, squares_of
from tilestream.interop.target import Target, Written
from tilestream.store.layout import tile_names
from tilestream.store.slide import Slide

SIDES = ("xmin", "ymin", "xmax", "ymax")


def write_geoparquet(slide: Slide, target: Target) -> Written:
    """Columns id, row, col, tissue, embedding (d float32), geometry (well-known binary, in the CRS of the image) and bbox.

    A tile that failed has no row. Memory bound: a block of rows, a row group each.

    Raises
    ------
    InputError
        Its image lies on no map.
    ConfigError
        pyarrow or pyproj is not installed.
    """
    pa, pq = load_pyarrow("geoparquet")
    on_map, width = map_of(slide), int(slide.vectors().shape[1])
    box = pa.struct([(side, pa.float64()) for side in SIDES])
    fields = [("id", pa.string()), ("row", pa.int64()), ("col", pa.int64()), ("tissue", pa.float32()), ("embedding", pa.list_(pa.float32(), width)),
              ("geometry", pa.binary()), ("bbox", box)]  # fmt: skip
    schema = pa.schema(fields, metadata=_about(slide, on_map))
    with target.writing() as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in slide.blocks():
            good = rows.good
            rings = on_map.world(squares_of(rows.x[good], rows.y[good], slide.l0_extent))
            values = np.ascontiguousarray(rows.vectors[good])
            corners = np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)
            boxes = pa.StructArray.from_arrays([pa.array(side) for side in corners.T], fields=list(box))
            columns = [
                pa.array(tile_names(slide.id, rows.row[good], rows.col[good]), pa.string()),
                pa.array(rows.row[good]),
                pa.array(rows.col[good]),
                pa.array(rows.tissue[good], pa.float32(), from_pandas=True),
                pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), width),
                pa.array(polygons_of(rings), pa.binary()),
                boxes,
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return Written.without_failed(slide)


def _about(slide: Slide, on_map: MapPlaces) -> dict[str, str]:
    geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": on_map.projjson(), "edges": "planar"}
    geometry["covering"] = {"bbox": {side: ["bbox", side] for side in SIDES}}
    if slide.layout.tiles:
        geometry["bbox"] = _extent(slide, on_map).tolist()
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    told = {
        "slide": slide.id,
        "model": model_uri(slide),
        "source_data": [source_uri(slide)],
        "source": slide.source,
        "recipe": slide.recipe,
    }
    return {"geo": json.dumps(geo), "tilestream": json.dumps(told)}


def _extent(slide: Slide, on_map: MapPlaces) -> NDArray[np.float64]:
    """Least and greatest x and y of all tiles, in units of the map."""
    y, x = slide.positions.T
    low, high = np.inf, -np.inf
    least, most = np.full(2, low), np.full(2, high)
    for start in range(0, len(x), 1 << 16):
        rings = on_map.world(squares_of(x[start : start + (1 << 16)], y[start : start + (1 << 16)], slide.l0_extent)).reshape(-1, 2)
        least, most = np.minimum(least, rings.min(axis=0)), np.maximum(most, rings.max(axis=0))
    return np.concatenate([least, most])
