"""Answers of heads that classify tiles, or slides, as rows of a table, as squares for QuPath, and as HDF5 in the manner of TRIDENT's features.

A tile that failed keeps its row, `not computed` and without numbers. Sources: https://www.rfc-editor.org/rfc/rfc4180, https://geoparquet.org and
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.interop.columns import load_pyarrow
from tilestream.interop.geojson import bounds_corner
from tilestream.interop.hdf5 import new_hdf5
from tilestream.interop.objects.geojson import placed, text_file
from tilestream.interop.on_map import MapPlaces, polygons_of, squares_of
from tilestream.interop.target import Target, Written
from tilestream.store.heads.columns import NOT_COMPUTED
from tilestream.store.heads.palette import class_colours
from tilestream.store.layout import BLOCK_ROWS, SLIDE, STATUSES, TILES
from tilestream.store.slide import Slide

PLACES = ("row", "col", "y", "x", "status")
"""Columns of tiles before the answer: place in the grid, top-left in level-0 px, and what became of the tile."""


@dataclass(frozen=True)
class AnsweredTiles:
    """Consecutive tiles, m of them."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    status: list[str]
    kinds: list[str] | None
    """(m,) names of classes; None of a head that gives none."""
    values: NDArray[np.float32]
    """(m, columns) numbers, NaN where there is no answer."""


@dataclass(frozen=True)
class Answered:
    """What a slide's store holds of a head's answers."""

    slide: Slide
    head: str

    @property
    def of_tiles(self) -> bool:
        """Whether there is something for each tile."""
        return any(self.slide.has(path) for path in self._columns.values()) or self.slide.has(f"{TILES}/obs/{self.head}")

    @property
    def names(self) -> list[str]:
        """Of the numbers of a tile."""
        answer = self.slide.head_answer(self.head)
        before = "prob_" if answer.task == "classification" else ""
        own = [f"{before}{name}" for name in answer.classes] or [f"value{k}" for k in range(answer.columns)]
        found = {"answer": own, "attention": ["attention"]}
        return [name for what, path in self._columns.items() if self.slide.has(path) for name in found[what]]

    @property
    def _columns(self) -> dict[str, str]:
        return {"answer": f"{TILES}/obsm/{self.head}", "attention": f"{TILES}/obsm/{self.head}_attention"}

    def tiles(self) -> Iterator[AnsweredTiles]:
        """All tiles in order.

        Memory bound: `BLOCK_ROWS` tiles.
        """
        slide = self.slide
        arrays = [slide.array(path) for path in self._columns.values() if slide.has(path)]
        places = [slide.array(f"{TILES}/obs/{name}") for name in ("row", "col", "y", "x", "status/codes")]
        codes = slide.array(f"{TILES}/obs/{self.head}/codes") if slide.has(f"{TILES}/obs/{self.head}") else None
        classes = [NOT_COMPUTED, *slide.head_answer(self.head).classes]
        for start in range(0, slide.layout.tiles, BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            row, col, y, x, status = (np.asarray(array[part], np.int64) for array in places)
            values = [np.asarray(array[part], np.float32) for array in arrays] or [np.empty((len(row), 0), np.float32)]
            kinds = None if codes is None else [classes[code] for code in np.asarray(codes[part]).tolist()]
            words = [STATUSES[code] if code >= 0 else "" for code in status.tolist()]
            yield AnsweredTiles(row, col, y, x, words, kinds, np.concatenate(values, axis=1))

    def of_slide(self) -> tuple[list[str], list[Any]]:
        """Names and cells of the one answer for the slide."""
        answer, values = self.slide.head_answer(self.head), self.slide.read_head(self.head)[0]
        before = "prob_" if answer.task == "classification" else ""
        names = [f"{before}{name}" for name in answer.classes] or [f"value{k}" for k in range(len(values))]
        cells: list[Any] = [float(value) if math.isfinite(value) else None for value in values]
        if answer.task != "classification":
            return ["slide", *names], [self.slide.id, *cells]
        kind = NOT_COMPUTED if None in cells else answer.classes[int(np.argmax(values))]
        return ["slide", "class", *names], [self.slide.id, kind, *cells]


def has_answers(slide: Slide, head: str) -> bool:
    """Whether a slide has what a head that classifies tiles, or the slide, leaves."""
    return head in slide.heads and (Answered(slide, head).of_tiles or slide.has(f"{SLIDE}/obsm/{head}"))


def write_answers_csv(slide: Slide, target: Target, *, head: str) -> Written:
    """A header and one line a tile, of a head of the slide one line for it; cells of what is not known are empty."""
    found = Answered(slide, head)
    with target.writing() as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if slide.has(f"{SLIDE}/obsm/{head}"):
            names, cells = found.of_slide()
            writer.writerows([names, [f"{cell:.9g}" if isinstance(cell, float) else cell for cell in cells]])
            return Written(1, what="answer")
        writer.writerow([*PLACES, *(["class"] if slide.has(f"{TILES}/obs/{head}") else []), *found.names])
        for rows in found.tiles():
            places = (rows.row.tolist(), rows.col.tolist(), rows.y.tolist(), rows.x.tolist(), rows.status)
            cells_of = [*places, *([] if rows.kinds is None else [rows.kinds])]
            for known, values in zip(zip(*cells_of, strict=True), rows.values.tolist(), strict=True):
                writer.writerow([*known, *(f"{value:.9g}" if math.isfinite(value) else "" for value in values)])
    return Written(slide.layout.tiles)


def write_answers_parquet(slide: Slide, target: Target, *, head: str) -> Written:
    """GeoParquet 1.0 of the tiles as squares, in level-0 px or in the CRS of an image on a map; of a head of the slide one row without a place.

    Memory bound: a row group of `BLOCK_ROWS` tiles.
    """
    pa, pq = load_pyarrow("parquet")
    found, on_map = Answered(slide, head), MapPlaces.of(slide)
    about = {"tilestream": json.dumps({"slide": slide.id, "source": slide.source, "head": {head: slide.heads[head]}})}
    if slide.has(f"{SLIDE}/obsm/{head}"):
        names, cells = found.of_slide()
        kinds = [pa.string() if isinstance(cell, str) else pa.float32() for cell in cells]
        columns = [pa.array([cell], kind) for cell, kind in zip(cells, kinds, strict=True)]
        with target.writing() as path:
            pq.write_table(pa.table(columns, names=names).replace_schema_metadata(about), path)
        return Written(1, what="answer")
    geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "edges": "planar", "crs": None if on_map is None else on_map.projjson()}
    about["geo"] = json.dumps({"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}})
    kinds = [pa.int64()] * 4 + [pa.string()] + [pa.string()] * slide.has(f"{TILES}/obs/{head}")
    named = [*PLACES, *(["class"] if slide.has(f"{TILES}/obs/{head}") else [])]
    fields = [*zip(named, kinds, strict=True), *((name, pa.float32()) for name in found.names), ("geometry", pa.binary())]
    schema = pa.schema(fields, metadata=about)
    with target.writing() as path, pq.ParquetWriter(path, schema) as writer:
        for rows in found.tiles():
            squares = squares_of(rows.x, rows.y, slide.l0_extent)
            known = [rows.row, rows.col, rows.y, rows.x, rows.status, *([] if rows.kinds is None else [rows.kinds])]
            last = polygons_of(squares if on_map is None else on_map.world(squares))
            arrays = [pa.array(column, field.type) for column, field in zip([*known, *rows.values.T, last], schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return Written(slide.layout.tiles)


def write_answers_hdf5(slide: Slide, target: Target, *, head: str) -> Written:
    """`predictions` (n, columns) float32 and `coords` (n, 2) int64, x, y of the top-left in level-0 px, as TRIDENT keeps features; of a head of the slide
    `predictions` (columns,), and where it kept them `attention` (n,) with `coords`. `predictions` has name, classes (JSON) and task.
    """
    found, answer = Answered(slide, head), slide.head_answer(head)
    told = {"name": slide.id, "head": head, "task": answer.task, "classes": json.dumps(list(answer.classes))}
    if not found.names and not slide.has(f"{SLIDE}/obsm/{head}"):
        slide.read_head(head)  # refuses: no numbers were kept
    with target.writing() as path, new_hdf5(path) as (file, storage):
        if slide.has(f"{SLIDE}/obsm/{head}"):
            file.create_dataset("predictions", data=slide.read_head(head)[0]).attrs.update(told)
        if found.names:
            name = "attention" if slide.has(f"{SLIDE}/obsm/{head}") else "predictions"
            shape = (slide.layout.tiles, len(found.names))
            values = file.create_dataset(name, shape, np.float32)
            values.attrs.update(told)
            coords = file.create_dataset("coords", (shape[0], 2), np.int64)
            coords.attrs.update({"patch_size_level0": round(slide.l0_extent), "name": slide.id})
            start = 0
            for rows in found.tiles():
                end = start + len(rows.row)
                values[start:end], coords[start:end] = rows.values, np.stack([rows.x, rows.y], axis=1)
                storage.check()
                start = end
    return Written(slide.layout.tiles if found.names else 1, what="tiles" if found.names else "answer")


def write_answers_geojson(slide: Slide, target: Target, *, head: str, in_bounds: bool = False) -> Written:
    """A square a tile, which QuPath reads as tile objects: class and colour, and its numbers as measurements.

    Memory bound: `BLOCK_ROWS` tiles.

    Raises
    ------
    InputError
        The head answers for the slide, and kept nothing for its tiles.
    """
    found, on_map = Answered(slide, head), MapPlaces.of(slide)
    if not found.of_tiles:
        raise InputError(
            f"{slide.path}: head {head} answers for the slide, and kept no attention of tiles. Use --to csv, or run with save: [attention]."
        )
    corner = bounds_corner(slide) if in_bounds else (0, 0)
    colours = dict(zip(slide.head_answer(head).classes, class_colours(len(slide.head_answer(head).classes)), strict=True))
    with target.writing() as path, text_file(path) as out:
        out.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for rows in found.tiles():
            squares = placed(shapely.polygons(squares_of(rows.x, rows.y, slide.l0_extent)), corner, on_map)
            for k, outline in enumerate(shapely.to_geojson(squares).tolist()):
                measured = {
                    name: round(value, 7) for name, value in zip(found.names, rows.values[k].tolist(), strict=True) if math.isfinite(value)
                }
                told: dict[str, Any] = {"objectType": "tile", "isLocked": True, "measurements": measured}
                if rows.kinds is not None and rows.kinds[k] in colours:
                    told["classification"] = {"name": rows.kinds[k], "color": colours[rows.kinds[k]]}
                out.write(f'{before}{{"type": "Feature", "geometry": {outline}, "properties": {json.dumps(told, allow_nan=False)}}}')
                before = ",\n"
        out.write("\n]}\n")
    return Written(slide.layout.tiles)
