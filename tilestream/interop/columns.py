"""Tiles as rows of a table: Parquet, or comma-separated values.

Columns: row, col (of the tile grid), y, x (top-left, level-0 px), tissue (fraction), status, then the embedding, f0 to f<d-1>. A tile that
failed keeps its row, with its status and without numbers.
Sources: https://parquet.apache.org/docs/file-format/ and https://www.rfc-editor.org/rfc/rfc4180.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import load_needed
from tilestream.interop.on_map import MapPlaces, polygons_of, squares_of
from tilestream.interop.target import Target, Written
from tilestream.store.layout import Rows
from tilestream.store.slide import Slide

COLUMNS = ("row", "col", "y", "x", "tissue", "status")

DIGITS = {"float16": 5, "float32": 9}
"""Significant digits that give a stored number back exactly."""


def write_csv(slide: Slide, target: Target) -> Written:
    """A header and one line a tile; cells of what is not known are empty."""
    digits = DIGITS[slide.layout.dtype]
    with target.writing() as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(f"f{k}" for k in range(slide.vectors().shape[1]))])
        for rows in slide.blocks():
            writer.writerows(_lines(rows, digits))
    return Written(slide.layout.tiles)


def _lines(rows: Rows, digits: int) -> Iterator[list[object]]:
    """Cells of each tile of a block."""
    known = zip(
        rows.row.tolist(), rows.col.tolist(), rows.y.tolist(), rows.x.tolist(), rows.tissue.tolist(), rows.status_names, strict=True
    )
    for cells, values in zip(known, rows.vectors, strict=True):
        *places, tissue, status = cells
        yield [*places, "" if math.isnan(tissue) else f"{tissue:.9g}", status, *_numbers(values, digits)]


def _numbers(values: NDArray[np.float32], digits: int) -> list[str]:
    """An embedding (d,) in decimal; empty cells where it is not finite."""
    return [f"{value:.{digits}g}" if math.isfinite(value) else "" for value in values.tolist()]


def write_parquet(slide: Slide, target: Target) -> Written:
    """One row group a block of tiles, of an image on a map with a column `geometry` (GeoParquet 1.0, in the CRS of the image); the key `tilestream` of the schema's metadata holds slide, source and recipe as JSON.

    Raises
    ------
    ConfigError
        pyarrow is not installed, or pyproj where the image lies on a map.
    """
    pa, pq = load_pyarrow("parquet")
    kinds = [pa.int64()] * 4 + [pa.float32(), pa.string()]
    fields = [*zip(COLUMNS, kinds, strict=True), *((f"f{k}", pa.float32()) for k in range(slide.vectors().shape[1]))]
    about = {"tilestream": json.dumps({"slide": slide.id, "source": slide.source, "recipe": slide.recipe})}
    on_map = MapPlaces.of(slide)
    if on_map is not None:
        fields.append(("geometry", pa.binary()))
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": on_map.projjson(), "edges": "planar"}
        about["geo"] = json.dumps({"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}})
    schema = pa.schema(fields, metadata=about)
    with target.writing() as path, pq.ParquetWriter(path, schema) as writer:
        for rows in slide.blocks():
            known = [rows.row, rows.col, rows.y, rows.x, rows.tissue, [name or None for name in rows.status_names]]
            columns = [*known, *np.where(rows.good[:, None], rows.vectors, np.nan).T]
            if on_map is not None:
                columns.append(polygons_of(on_map.world(squares_of(rows.x, rows.y, slide.l0_extent))))
            arrays = [pa.array(values, kind.type, from_pandas=True) for values, kind in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return Written(slide.layout.tiles)


def load_pyarrow(name: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet, which the format `name` needs. Raises ConfigError where they are not installed."""
    pa, pq = load_needed(f"--to {name}", "parquet", "pyarrow", "pyarrow.parquet", otherwise=" or pip install pyarrow, or use --to csv")
    return pa, pq
