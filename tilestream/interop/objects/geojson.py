"""Objects as GeoJSON that QuPath reads as detections, feature by feature.

Sources: https://www.rfc-editor.org/rfc/rfc7946 and
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html (objectType, classification, measurements; px of full resolution).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from tilestream.interop.geojson import bounds_corner
from tilestream.interop.on_map import MapPlaces
from tilestream.interop.target import Target, Written
from tilestream.store.heads.palette import class_colours
from tilestream.store.heads.shapes import ShapeRows, ShapesFile
from tilestream.store.slide import Slide

OBJECT_TYPE = "detection"


def write_objects_geojson(slide: Slide, target: Target, *, head: str, in_bounds: bool = False) -> Written:
    """One feature an object: its outline in level-0 px, class and colour, and the measurements score and area_um2 where the slide has a scale.

    With `in_bounds`, places count from the corner of OpenSlide's bounds, as QuPath does. Of an image on a map with a known CRS, they are degrees of
    WGS 84. A target whose name ends in .gz is compressed.

    Memory bound: a row group of objects.
    """
    file, on_map = ShapesFile.of(slide.folder, head), MapPlaces.of(slide)
    corner = bounds_corner(slide) if in_bounds else (0, 0)
    classes = [json.dumps({"name": name, "color": colour}) for name, colour in zip(file.classes, class_colours(len(file.classes)), strict=True)]  # fmt: skip
    with target.writing() as path, text_file(path) as out:
        out.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for rows in file.rows():
            shapes = placed(rows.shapes, corner, on_map)
            for feature in _features(rows, shapes, classes, uuid.uuid5(uuid.NAMESPACE_URL, f"{slide.id}/{head}")):
                out.write(before)
                out.write(feature)
                before = ",\n"
        out.write("\n]}\n")
    return Written(len(file), what="objects")


def placed(shapes: NDArray[np.object_], corner: tuple[int, int], on_map: MapPlaces | None) -> NDArray[np.object_]:
    """Outlines where the file wants them; outer rings on a map run against the clock."""
    if on_map is not None and on_map.crs:
        return np.asarray(shapely.orient_polygons(shapely.transform(shapes, on_map.degrees)))
    y, x = corner
    return np.asarray(shapely.transform(shapes, lambda xy: xy - (x, y))) if y or x else shapes


def _features(rows: ShapeRows, shapes: NDArray[np.object_], classes: list[str], whose: uuid.UUID) -> Iterator[str]:
    outlines = shapely.to_geojson(shapes).tolist()
    for number, outline, kind, score, area in zip(
        rows.ids.tolist(), outlines, rows.classes.tolist(), rows.scores.tolist(), rows.area_um2.tolist(), strict=True
    ):
        measured = f'"score": {score:.6g}' + ("" if math.isnan(area) else f', "area_um2": {area:.6g}')
        yield (
            f'{{"type": "Feature", "id": "{uuid.uuid5(whose, str(number))}", "geometry": {outline}, "properties": {{"objectType": "{OBJECT_TYPE}", '
            f'"classification": {classes[kind]}, "isLocked": false, "measurements": {{{measured}}}}}}}'
        )


@contextmanager
def text_file(path: Path) -> Iterator[io.TextIOBase]:
    """A text file, compressed where its name says so; the same text is the same bytes."""
    if path.suffix != ".gz":
        with path.open("w", encoding="utf-8") as plain:
            yield plain
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as text,
    ):
        yield text
