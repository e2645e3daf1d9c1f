"""Objects as a SpatialData container with one element of shapes, which `spatialdata.read_zarr` opens. Sources: see `interop.spatialdata`."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from tilestream.interop.shapes import create_shapes_group, index_metadata
from tilestream.interop.spatialdata import container
from tilestream.interop.target import Target, Written
from tilestream.store.heads.shapes import ShapesFile, load_pyarrow
from tilestream.store.slide import Slide

INDEX = "id"


def write_objects_spatialdata(slide: Slide, target: Target, *, head: str) -> Written:
    """`shapes/<head>`: outlines in level-0 px with class, score and area_um2; the index is the object's id.

    Memory bound: a row group of objects.
    """
    pa, pq = load_pyarrow()
    file = ShapesFile.of(slide.folder, head)
    fields: list[tuple[str, Any]] = [("geometry", pa.binary()), ("class", pa.string()), ("score", pa.float32()), ("area_um2", pa.float64())]
    metadata = index_metadata(INDEX, file.geo["columns"]["geometry"]["geometry_types"])
    schema = pa.schema([*fields, (INDEX, pa.int64())], metadata=metadata)
    names = np.array(file.classes, object)
    with target.writing() as path:
        root = container(path)
        create_shapes_group(root.create_group("shapes"), head)
        with pq.ParquetWriter(path / "shapes" / head / "shapes.parquet", schema) as writer:
            for rows in file.rows():
                area = pa.array(rows.area_um2, pa.float64(), from_pandas=True)
                columns = [pa.array(shapely.to_wkb(rows.shapes, byte_order=1), pa.binary()), pa.array(names[rows.classes], pa.string()),
                           pa.array(rows.scores), area, pa.array(rows.ids)]  # fmt: skip
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return Written(len(file), what="objects")
