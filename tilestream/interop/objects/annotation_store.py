"""Objects, or the regions of a label image, as TIAToolbox's AnnotationStore, an SQLite file with a spatial index that TIAViz shows.

Source: https://github.com/TissueImageAnalytics/tiatoolbox (`SQLiteStore`, version 1.0.1 of its tables).
"""

from __future__ import annotations

import json
import math
import sqlite3
import uuid
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import shapely

from tilestream.interop.objects.label_polygons import shapes_of, words_for
from tilestream.interop.target import Target, Written
from tilestream.store.heads.palette import class_colours
from tilestream.store.heads.shapes import ShapeRows
from tilestream.store.slide import Slide

LEVEL = 6
"""Of zlib, for each outline."""

TABLES = """
CREATE TABLE metadata (key TEXT UNIQUE, value TEXT);
CREATE VIRTUAL TABLE rtree USING rtree(id, min_x, max_x, min_y, max_y);
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, cy FLOAT NOT NULL, geometry BLOB, properties TEXT, area FLOAT NOT NULL
);
"""

Line = tuple[Any, ...]


def write_annotation_store(slide: Slide, target: Target, *, head: str) -> Written:
    """One annotation an object: outline in level-0 px, and the properties type, color (0 to 1), score where it has one, and area_um2 where the slide has a scale.

    Memory bound: a row group of objects, and SQLite's cache.
    """
    file = shapes_of(slide, head)
    about = {"version": "1.0.1", "compression": "zlib", "compression_level": LEVEL}
    told = [
        {"type": name, "color": [round(part / 255, 4) for part in colour]}
        for name, colour in zip(file.classes, class_colours(len(file.classes)), strict=True)
    ]
    whose = uuid.uuid5(uuid.NAMESPACE_URL, f"{slide.id}/{head}")
    with target.writing() as path, closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode = OFF")  # the file is new, and is there whole or not at all
        base.executescript(TABLES)
        base.executemany("INSERT INTO metadata VALUES (?, ?)", [(key, json.dumps(value)) for key, value in about.items()])
        for rows in file.rows():
            x0, y0, x1, y1 = shapely.bounds(rows.shapes).T.tolist()
            base.executemany("INSERT INTO rtree VALUES (?, ?, ?, ?, ?)", zip(rows.ids.tolist(), x0, x1, y0, y1, strict=True))
            base.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _lines(rows, told, whose))
        base.commit()
    return Written(len(file), what=words_for(file))


def _lines(rows: ShapeRows, told: list[dict[str, Any]], whose: uuid.UUID) -> Iterator[Line]:
    middle = shapely.get_coordinates(shapely.centroid(rows.shapes)).tolist()
    parts = zip(
        rows.ids.tolist(), shapely.get_type_id(rows.shapes).tolist(), middle, shapely.to_wkb(rows.shapes, byte_order=1).tolist(),
        rows.classes.tolist(), rows.scores.tolist(), rows.area_um2.tolist(), shapely.area(rows.shapes).tolist(), strict=True,
    )  # fmt: skip
    for number, kind, (x, y), outline, of, score, area_um2, area in parts:
        known = dict(told[of])
        if not math.isnan(score):
            known["score"] = round(score, 6)
        if not math.isnan(area_um2):
            known["area_um2"] = round(area_um2, 3)
        yield number, str(uuid.uuid5(whose, str(number))), kind, x, y, zlib.compress(outline, LEVEL), json.dumps(known), area
