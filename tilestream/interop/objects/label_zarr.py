"""The label image of a head as OME-Zarr of its own, and as the labels of a SpatialData container; pixels are copied as they are stored.

Sources: https://ngff.openmicroscopy.org/0.5/ (image-label) and those of `interop.spatialdata`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from tilestream.interop.objects.label_polygons import l0_step_of, labels_path
from tilestream.interop.spatialdata import container, copy_objects, raster_about
from tilestream.interop.target import Target, Written
from tilestream.store.folder import Folder
from tilestream.store.slide import Slide


def write_label_ome_zarr(slide: Slide, target: Target, *, head: str, **_: Any) -> Written:
    """The label image as the root of a group: all levels, names and colours of classes, places in µm; 0 is what was not computed.

    Memory bound: the largest object of the label image, one block.
    """
    with target.writing() as path:
        copy_objects(slide.folder, Folder(str(path)), _image(head), to="")
        levels = _levels(path)
    return Written(levels, what="levels")


def write_label_spatialdata(slide: Slide, target: Target, *, head: str, **_: Any) -> Written:
    """`labels/<head>`, all levels, in level-0 px.

    Memory bound: as of `write_label_ome_zarr`.
    """
    with target.writing() as path:
        container(path).create_group("labels", attributes={"ome": {"labels": [head]}})
        place = _image(head)
        copy_objects(slide.folder, Folder(str(path)), place)
        image = zarr.open_group(path / place, mode="r+")
        told: Any = image.attrs["ome"]
        levels = _levels(path / place)
        about = raster_about(head, "yx", l0_step_of(slide, head), (0.0, 0.0), {"image-label": told["image-label"]}, levels)
        image.attrs.put(about)
    return Written(levels, what="levels")


def _image(head: str) -> str:
    return labels_path(head).rpartition("/")[0]


def _levels(path: Path) -> int:
    return sum(part.name.isdigit() for part in path.iterdir())
