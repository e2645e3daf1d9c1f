"""The label image of a head as polygons, region by region: as rows like those of objects, and as GeoJSON that QuPath reads as annotations."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely
import zarr
from numpy.typing import NDArray

from tilestream.interop.geojson import bounds_corner
from tilestream.interop.objects.geojson import placed, text_file
from tilestream.interop.on_map import MapPlaces
from tilestream.interop.target import Target, Written
from tilestream.models.heads.outlines import Outlines, trace_blocks
from tilestream.store.heads.palette import class_colours
from tilestream.store.heads.shapes import ShapeRows, ShapesFile, geo_metadata, shapes_key
from tilestream.store.slide import Slide

BLOCK = 2048
"""Side of the blocks in which labels are read, px."""

TOLERANCE = 0.5
"""Px of the label image that outlines may be simplified by: corners of stairs go, and borders that two regions share stay shared."""


def labels_path(head: str) -> str:
    """Where the finest level of a head's label image lies."""
    return f"labels/{head}/0"


class LabelRegions:
    """The connected regions of a head's label image, as a `ShapesFile` gives objects: numbered from 1, without a score.

    Memory bound: a block, one row of labels, and the edges of regions that reach the last row read.
    """

    def __init__(self, slide: Slide, head: str) -> None:
        self.slide, self.classes = slide, list(slide.head_answer(head).classes)
        self.told: dict[str, Any] = {"head": head, "classes": self.classes}
        self.geo = geo_metadata(["Polygon"], None, None)
        self._labels, self._step = slide.array(labels_path(head)), l0_step_of(slide, head)
        self._given = 0

    def __len__(self) -> int:
        """Regions that `rows` gave so far."""
        return self._given

    def rows(self) -> Iterator[ShapeRows]:
        """All regions, those together that are complete together."""
        self._given = 0
        for regions in _regions(self._labels):
            shapes = shapely.transform(regions.polygons, lambda xy: xy * self._step)
            first, self._given = self._given + 1, self._given + len(shapes)
            scores, mpp = np.full(len(shapes), np.nan, np.float32), self.slide.mpp
            area = shapely.area(shapes) * (np.nan if mpp is None else mpp**2)
            yield ShapeRows(shapes, regions.labels - 1, scores, area, np.arange(first, self._given + 1))


def shapes_of(slide: Slide, head: str) -> ShapesFile | LabelRegions:
    """The objects of a head, or the regions of its label image."""
    objects = slide.folder.exists(shapes_key(head)) or not slide.has(labels_path(head))
    return ShapesFile.of(slide.folder, head) if objects else LabelRegions(slide, head)


def words_for(shapes: ShapesFile | LabelRegions) -> str:
    """What they are called."""
    return "objects" if isinstance(shapes, ShapesFile) else "regions"


def write_label_polygons(slide: Slide, target: Target, *, head: str, in_bounds: bool = False) -> Written:
    """One feature a connected region of one class: its outline with its holes in level-0 px, class and colour, and its area.

    Places are those of `write_objects_geojson`. A target whose name ends in .gz is compressed.

    Memory bound: a block, one row of labels, and the edges of regions that reach the last row read.
    """
    regions = LabelRegions(slide, head)
    told = [
        json.dumps({"name": name, "color": colour})
        for name, colour in zip(regions.classes, class_colours(len(regions.classes)), strict=True)
    ]
    whose = uuid.uuid5(uuid.NAMESPACE_URL, f"{slide.id}/{head}")
    on_map, corner = MapPlaces.of(slide), bounds_corner(slide) if in_bounds else (0, 0)
    with target.writing() as path, text_file(path) as out:
        out.write('{"type": "FeatureCollection", "features": [')
        for rows in regions.rows():
            outlines, areas = shapely.to_geojson(placed(rows.shapes, corner, on_map)), shapely.area(rows.shapes)
            for number, kind, outline, area in zip(
                rows.ids.tolist(), rows.classes.tolist(), outlines.tolist(), areas.tolist(), strict=True
            ):
                measured = f'"area_px": {area:.6g}' if slide.mpp is None else f'"area_um2": {area * slide.mpp**2:.6g}'
                out.write(
                    f'{"," if number > 1 else ""}\n{{"type": "Feature", "id": "{uuid.uuid5(whose, str(number - 1))}", "geometry": {outline}, "properties": '
                    f'{{"objectType": "annotation", "classification": {told[kind]}, "isLocked": false, "measurements": {{{measured}}}}}}}'
                )
        out.write("\n]}\n")
    return Written(len(regions), what="regions")


def _regions(labels: Any) -> Iterator[Outlines]:
    """The regions of a label image (h, w)."""
    height, width = labels.shape

    def blocks() -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        for y in range(0, height, BLOCK):
            for x in range(0, width, BLOCK):
                yield y, x, np.asarray(labels[y : y + BLOCK, x : x + BLOCK])

    return trace_blocks(blocks(), (height, width), TOLERANCE)


def l0_step_of(slide: Slide, head: str) -> float:
    """Level-0 px from pixel to pixel of a label image."""
    about: Any = zarr.open_group(slide.folder.store, path=f"labels/{head}", mode="r").attrs["ome"]
    scale = about["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"][-1]
    return float(scale) / (slide.mpp or 1.0)
