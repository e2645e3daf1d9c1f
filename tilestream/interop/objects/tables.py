"""Objects, or the regions of a label image, as rows of a table: GeoParquet, or comma-separated values."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from tilestream.interop.objects.label_polygons import LabelRegions, shapes_of, words_for
from tilestream.interop.on_map import MapPlaces
from tilestream.interop.target import Target, Written
from tilestream.store.heads.shapes import CORNERS, ShapeRows, ShapesFile, geo_metadata, shapes_key, write_groups
from tilestream.store.slide import Slide

COLUMNS = ("id", "class", "score", "area_um2", "x", "y", *CORNERS)
"""x and y are the middle of the outline's area; all places are level-0 px."""


def write_objects_parquet(slide: Slide, target: Target, *, head: str) -> Written:
    """GeoParquet 1.1: the slide's own file as it is, or of an image on a map the same in its CRS; regions are traced.

    Memory bound: a row group of objects, or what `LabelRegions` holds.

    Raises
    ------
    ConfigError
        The image lies on a map, and pyproj is not installed.
    """
    file, on_map = shapes_of(slide, head), MapPlaces.of(slide)
    with target.writing() as path:
        if on_map is None and isinstance(file, ShapesFile):
            _copy(slide, head, path)
        else:
            crs = None if on_map is None else on_map.projjson()
            geo = geo_metadata(file.geo["columns"]["geometry"]["geometry_types"], None, crs)
            write_groups(path, file.rows() if on_map is None else _placed(file, on_map), file.classes, geo, file.told)
    return Written(len(file), what=words_for(file))


def _copy(slide: Slide, head: str, path: Path) -> None:
    there = slide.folder.file(shapes_key(head))
    if isinstance(there, Path):
        shutil.copyfile(there, path)
        return
    with there, path.open("wb") as out:
        shutil.copyfileobj(there, out, 1 << 20)


def _placed(file: ShapesFile | LabelRegions, on_map: MapPlaces) -> Iterator[ShapeRows]:
    for rows in file.rows():
        yield ShapeRows(shapely.transform(rows.shapes, on_map.world), rows.classes, rows.scores, rows.area_um2, rows.ids)


def write_objects_csv(slide: Slide, target: Target, *, head: str) -> Written:
    """A header and one line an object; cells of what is not known are empty."""
    file = shapes_of(slide, head)
    with target.writing() as path, path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rows in file.rows():
            middle = shapely.get_coordinates(shapely.centroid(rows.shapes))
            places = np.round(np.concatenate([middle, shapely.bounds(rows.shapes)], axis=1), 3).tolist()
            known = zip(rows.ids.tolist(), rows.classes.tolist(), rows.scores.tolist(), rows.area_um2.tolist(), places, strict=True)
            for number, kind, score, area, place in known:
                cells = ("" if math.isnan(score) else f"{score:.6g}", "" if math.isnan(area) else f"{area:.6g}", *(f"{value:g}" if value < 1e5 else f"{value:.3f}" for value in place))  # fmt: skip
                writer.writerow([number, file.classes[kind], *cells])
    return Written(len(file), what=words_for(file))
