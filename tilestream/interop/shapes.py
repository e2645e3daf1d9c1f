"""Tiles as squares in a GeoParquet file, the form that SpatialData keeps shapes in.

Sources: https://geoparquet.org/releases/v1.0.0/ (key `geo` of the file's metadata, geometry as well-known binary) and
https://github.com/scverse/spatialdata (shapes 0.3: a group with attributes beside `shapes.parquet`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.interop.columns import load_pyarrow
from tilestream.interop.on_map import polygons_of, squares_of
from tilestream.store.slide import Slide

SHAPES = "0.3"
"""Version of SpatialData's form."""


def squares(x: NDArray[np.int64], y: NDArray[np.int64], side: float) -> list[bytes]:
    """Well-known binary of m squares of `side` px whose top-left corners are x, y (m,), in the same px."""
    return polygons_of(squares_of(x, y, side))


def write_shapes(parent: zarr.Group, folder: Path, name: str, key: str, slide: Slide) -> None:
    """Make the group `name` of squares in level-0 px, one a tile; the index `key` is the tile's row in the table + 1.

    Memory bound: a block of rows, a row group each.

    Parameters
    ----------
    parent : zarr.Group
        The group `shapes`.
    folder : Path
        Where `parent` lies on the disk.
    name, key : str
        Of the shapes and of their index.
    slide : Slide
        Whose tiles they are.

    Raises
    ------
    ConfigError
        pyarrow is not installed.
    """
    pa, pq = load_pyarrow("spatialdata")
    create_shapes_group(parent, name)
    schema = pa.schema([("geometry", pa.binary()), (key, pa.int64())], metadata=index_metadata(key, ["Polygon"]))
    with pq.ParquetWriter(folder / name / "shapes.parquet", schema) as writer:
        first = 1
        for rows in slide.blocks():
            numbers = np.arange(first, first + len(rows.x))
            first += len(rows.x)
            writer.write_table(pa.table([squares(rows.x, rows.y, slide.l0_extent), numbers], schema=schema))


def create_shapes_group(parent: zarr.Group, name: str) -> None:
    """Make the group of an element of shapes in level-0 px, whose `shapes.parquet` is to be written."""
    axes: list[dict[str, Any]] = [{"name": axis, "type": "space", "unit": "unit"} for axis in "xy"]
    spaces = {"input": {"name": "xy", "axes": axes}, "output": {"name": "global", "axes": axes}}
    about = {
        "encoding-type": "ngff:shapes", "axes": ["x", "y"], "coordinateTransformations": [{"type": "identity", **spaces}],
        "spatialdata_attrs": {"version": SHAPES},
    }  # fmt: skip
    parent.create_group(name, attributes=about)


def index_metadata(key: str, kinds: Sequence[str]) -> dict[str, str]:
    """What the file says of itself: the geometry, of these types, in px of no place on Earth, and the column that is pandas' index."""
    geometry = {"encoding": "WKB", "geometry_types": list(kinds), "crs": None, "edges": "planar"}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    index = {"name": key, "field_name": key, "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    pandas = {"index_columns": [key], "column_indexes": [], "columns": [index]}
    return {"geo": json.dumps(geo), "pandas": json.dumps(pandas)}
