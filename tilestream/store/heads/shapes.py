"""Objects of a slide as GeoParquet 1.1: parts of blocks, and the one file that they are joined to, in the order of blocks.

Geometry is well-known binary of x, y in level-0 px; beside it id, class, score, area_um2, and `bbox` as the covering by which readers find what
lies in a region. Source: https://geoparquet.org/releases/v1.1.0/.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, load_needed
from tilestream.store.folder import Folder

SHAPES = "shapes"
"""Folder of a slide's shapes: one file a head."""

GROUP_ROWS = 1 << 16
"""Objects of a row group, at most."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")

KINDS = {0: "Point", 3: "Polygon", 6: "MultiPolygon", 7: "GeometryCollection"}
"""By shapely's number."""

COVERING = {"bbox": {corner: ["bbox", corner] for corner in CORNERS}}


@dataclass(frozen=True)
class ShapeRows:
    """Objects as they are stored, m of them."""

    shapes: NDArray[np.object_]
    """(m,) shapely geometries of x, y in level-0 px."""
    classes: NDArray[np.int64]
    """(m,) place of each one's class in the list of classes."""
    scores: NDArray[np.float32]
    """(m,) NaN where there is none."""
    area_um2: NDArray[np.float64]
    """(m,) NaN where the slide has no scale."""
    ids: NDArray[np.int64]
    """(m,) from 1 on, in the order of the file; 0 in a part, where they are not known yet."""

    def __len__(self) -> int:
        return len(self.shapes)

    @classmethod
    def of(cls, shapes: NDArray[np.object_], classes: NDArray[np.int64], scores: NDArray[np.float32], mpp: float | None) -> ShapeRows:
        """Objects of a part, with their areas where the level-0 px have a size."""
        import shapely

        area = shapely.area(shapes) * mpp**2 if mpp is not None else np.full(len(shapes), np.nan)
        return cls(shapes, classes, scores, area, np.zeros(len(shapes), np.int64))


def shapes_key(head: str) -> str:
    """Where the objects of a head lie in a slide's store."""
    return f"{SHAPES}/{head}.parquet"


def picture_key(head: str) -> str:
    """Where the picture of a head's objects lies."""
    return f"{SHAPES}/{head}.png"


def pack_part(rows: ShapeRows, classes: Sequence[str]) -> bytes:
    """The objects of a block as a Parquet file of its own."""
    import shapely

    pa, pq = load_pyarrow()
    out = io.BytesIO()
    kinds = sorted({KINDS[kind] for kind in np.unique(shapely.get_type_id(rows.shapes)).tolist()})
    corners = [float(corner) for corner in shapely.total_bounds(rows.shapes)] if len(rows) else None
    schema = _schema(pa).with_metadata({"geo": json.dumps(geo_metadata(kinds, corners, None))})
    with pq.ParquetWriter(out, schema, **_WRITING) as writer:
        for start in range(0, len(rows), GROUP_ROWS):
            writer.write_table(_table(pa, schema, rows, slice(start, start + GROUP_ROWS), classes))
    return out.getvalue()


def join_parts(parts: Sequence[Any], path: Path, told: dict[str, Any], *, each: Callable[[Any], object] | None = None) -> int:
    """Write the file of all parts, a row group for each of theirs, and number the objects; returns how many there are.

    Memory bound: one row group.

    Parameters
    ----------
    parts : sequence of paths or files
        Each from `pack_part`, in the order that they are to have.
    path : Path
        Where to.
    told : dict
        What the key `tilestream` of the file's metadata holds: head, classes and whatever else JSON can hold.
    each : callable, optional
        Given every row group, a pyarrow table.
    """
    pa, pq = load_pyarrow()
    kinds, corners = _joined_facts([json.loads(pq.read_schema(part).metadata[b"geo"])["columns"]["geometry"] for part in parts])
    about = {"geo": json.dumps(geo_metadata(kinds, corners, None)), "tilestream": json.dumps(told)}
    schema, count = _schema(pa).with_metadata(about), 0
    with pq.ParquetWriter(path, schema, **_WRITING) as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for k in range(file.num_row_groups):
                    group = file.read_row_group(k)
                    ids = pa.array(np.arange(count + 1, count + 1 + len(group)), pa.int64())
                    writer.write_table(group.set_column(0, "id", ids).replace_schema_metadata(about))
                    count += len(group)
                    if each is not None:
                        each(group)
    return count


def write_groups(path: Path, groups: Iterable[ShapeRows], classes: Sequence[str], geo: dict[str, Any], told: dict[str, Any]) -> None:
    """Write objects that are numbered already, a row group for each of `groups`, with what the keys `geo` and `tilestream` are to hold."""
    pa, pq = load_pyarrow()
    schema = _schema(pa).with_metadata({"geo": json.dumps(geo), "tilestream": json.dumps(told)})
    with pq.ParquetWriter(path, schema, **_WRITING) as writer:
        for rows in groups:
            writer.write_table(_table(pa, schema, rows, slice(None), classes))


def _joined_facts(columns: Sequence[dict[str, Any]]) -> tuple[list[str], list[float] | None]:
    """Types of geometry and corners of the boxes of all parts."""
    kinds = sorted({kind for column in columns for kind in column["geometry_types"]})
    boxes = np.array([column["bbox"] for column in columns if "bbox" in column])
    return kinds, [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()] if len(boxes) else None


def geo_metadata(kinds: Sequence[str], corners: Sequence[float] | None, crs: dict[str, Any] | None) -> dict[str, Any]:
    """What the key `geo` of a file's metadata holds."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": list(kinds), "crs": crs, "edges": "planar", "covering": COVERING}
    if corners is not None:
        column["bbox"] = list(corners)
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


class ShapesFile:
    """The objects of one head of a slide, for reading.

    Memory bound: a row group in `rows`; what is asked for in `within`, and a row group.

    Parameters
    ----------
    file : path or file
        As `join_parts` wrote it.
    """

    def __init__(self, file: Any) -> None:
        _, pq = load_pyarrow()
        self._file = pq.ParquetFile(file)
        metadata = self._file.metadata
        self.told: dict[str, Any] = json.loads(metadata.metadata[b"tilestream"])
        self.geo: dict[str, Any] = json.loads(metadata.metadata[b"geo"])
        self.classes: list[str] = self.told["classes"]
        self._number = {name: k for k, name in enumerate(self.classes)}

    @classmethod
    def of(cls, folder: Folder, head: str) -> ShapesFile:
        """The objects of a head in a slide's store. Raises InputError where there are none."""
        key = shapes_key(head)
        if not folder.exists(key):
            there = [name.removesuffix(".parquet").rpartition("/")[2] for name in folder.names(SHAPES) if name.endswith(".parquet")]
            held = f"it has {', '.join(there)}" if there else "it has none of any head"
            raise InputError(f"{folder.address} has no objects of {head!r}; {held}. Run with that head, of kind detect.")
        return cls(folder.file(key))

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def groups(self) -> int:
        """Row groups of the file."""
        return int(self._file.num_row_groups)

    def table(self, group: int) -> Any:
        """One row group, as a pyarrow table."""
        return self._file.read_row_group(group)

    def class_counts(self) -> list[int]:
        """Objects of each class."""
        counts = dict.fromkeys(self.classes, 0)
        for group in range(self.groups):
            for told in self._file.read_row_group(group, columns=["class"])["class"].value_counts().to_pylist():
                counts[told["values"]] += told["counts"]
        return list(counts.values())

    def rows(self) -> Iterator[ShapeRows]:
        """All objects, a row group at a time."""
        for group in range(self.groups):
            yield self._rows(self.table(group))

    def within(self, y0: float, x0: float, y1: float, x1: float) -> Iterator[ShapeRows]:
        """The objects whose boxes meet a region of level-0 px; row groups that lie elsewhere are not read."""
        for group in range(self.groups):
            left, top, right, bottom = self._corners(group)
            if left > x1 or right < x0 or top > y1 or bottom < y0:
                continue
            table = self.table(group)
            xmin, ymin, xmax, ymax = (table["bbox"].combine_chunks().field(corner).to_numpy() for corner in CORNERS)
            inside = (xmin <= x1) & (xmax >= x0) & (ymin <= y1) & (ymax >= y0)
            if inside.any():
                yield self._rows(table.filter(inside))

    def _corners(self, group: int) -> list[float]:
        """Least x and y, largest x and y of a row group, from its statistics."""
        about = self._file.metadata.row_group(group)
        columns = {about.column(k).path_in_schema: about.column(k).statistics for k in range(about.num_columns)}
        return [getattr(columns[f"bbox.{corner}"], "min" if corner.endswith("min") else "max") for corner in CORNERS]

    def _rows(self, table: Any) -> ShapeRows:
        import shapely

        classes = np.array([self._number[name] for name in table["class"].to_pylist()], np.int64)
        area = table["area_um2"].to_numpy(zero_copy_only=False)
        geometry = table["geometry"].to_numpy(zero_copy_only=False)
        return ShapeRows(
            shapely.from_wkb(geometry), classes, table["score"].to_numpy(), np.asarray(area, np.float64), table["id"].to_numpy()
        )


def load_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises ConfigError where they are not installed."""
    pa, pq = load_needed("a head of kind detect", "parquet", "pyarrow", "pyarrow.parquet")
    return pa, pq


_WRITING: dict[str, Any] = {"compression": "zstd", "write_statistics": True, "use_dictionary": ["class"]}
"""Of every file, so that the same objects are the same bytes."""


def _schema(pa: Any) -> Any:
    box = pa.struct([(corner, pa.float64()) for corner in CORNERS])
    fields = [("id", pa.int64()), ("class", pa.string()), ("score", pa.float32()), ("area_um2", pa.float64()), ("bbox", box)]
    return pa.schema([*fields, ("geometry", pa.binary())])


def _table(pa: Any, schema: Any, rows: ShapeRows, part: slice, classes: Sequence[str]) -> Any:
    import shapely

    shapes = rows.shapes[part]
    corners = shapely.bounds(shapes).T
    box = pa.StructArray.from_arrays([pa.array(values, pa.float64()) for values in corners], list(CORNERS))
    names = pa.array(np.array(classes, object)[rows.classes[part]], pa.string())
    area = pa.array(rows.area_um2[part], pa.float64(), from_pandas=True)
    geometry = pa.array(shapely.to_wkb(shapes, byte_order=1), pa.binary())
    return pa.Table.from_arrays(
        [pa.array(rows.ids[part]), names, pa.array(rows.scores[part], from_pandas=True), area, box, geometry], schema=schema
    )
