"""The label image of a head as polygons in GeoJSON that QuPath reads as annotations, region by region."""

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
from tilestream.store.slide import Slide

BLOCK = 2048
"""Side of the blocks in which labels are read, px."""

TOLERANCE = 0.5
"""Px of the label image that outlines may be simplified by: corners of stairs go, and borders that two regions share stay shared."""


def labels_path(head: str) -> str:
    """Where the finest level of a head's label image lies."""
    return f"labels/{head}/0"


def write_label_polygons(slide: Slide, target: Target, *, head: str, in_bounds: bool = False) -> Written:
    """One feature a connected region of one class: its outline with its holes in level-0 px, class and colour, and its area.

    Places are those of `write_objects_geojson`. A target whose name ends in .gz is compressed.

    Memory bound: a block, one row of labels, and the edges of regions that reach the last row read.
    """
    classes = slide.head_answer(head).classes
    told = [json.dumps({"name": name, "color": colour}) for name, colour in zip(classes, class_colours(len(classes)), strict=True)]
    step, whose = l0_step_of(slide, head), uuid.uuid5(uuid.NAMESPACE_URL, f"{slide.id}/{head}")
    on_map, corner = MapPlaces.of(slide), bounds_corner(slide) if in_bounds else (0, 0)
    count = 0
    with target.writing() as path, text_file(path) as out:
        out.write('{"type": "FeatureCollection", "features": [')
        for regions in _regions(slide.array(labels_path(head))):
            shapes = shapely.transform(regions.polygons, lambda xy: xy * step)
            areas = shapely.area(shapes)
            for kind, outline, area in zip(regions.labels.tolist(), shapely.to_geojson(placed(shapes, corner, on_map)).tolist(), areas.tolist(), strict=True):  # fmt: skip
                measured = f'"area_px": {area:.6g}' if slide.mpp is None else f'"area_um2": {area * slide.mpp**2:.6g}'
                out.write(
                    f'{"," if count else ""}\n{{"type": "Feature", "id": "{uuid.uuid5(whose, str(count))}", "geometry": {outline}, "properties": '
                    f'{{"objectType": "annotation", "classification": {told[kind - 1]}, "isLocked": false, "measurements": {{{measured}}}}}}}'
                )
                count += 1
        out.write("\n]}\n")
    return Written(count, what="regions")


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
