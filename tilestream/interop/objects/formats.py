"""The tables of formats that objects and label images of heads are exported to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilestream.errors import ConfigError, InputError
from tilestream.interop.objects.annotation_store import write_annotation_store
from tilestream.interop.objects.answers import (
    has_answers,
    write_answers_csv,
    write_answers_geojson,
    write_answers_hdf5,
    write_answers_parquet,
)
from tilestream.interop.objects.geojson import write_objects_geojson
from tilestream.interop.objects.label_polygons import labels_path, write_label_polygons
from tilestream.interop.objects.label_tiff import write_label_tiff
from tilestream.interop.objects.label_zarr import write_label_ome_zarr, write_label_spatialdata
from tilestream.interop.objects.spatialdata import write_objects_spatialdata
from tilestream.interop.objects.tables import write_objects_csv, write_objects_parquet
from tilestream.interop.target import Target, Written
from tilestream.store.heads.shapes import SHAPES, shapes_key
from tilestream.store.slide import Slide

Writer = Callable[..., Written]

OBJECT_FORMATS: dict[str, tuple[str, Writer]] = {
    "geojson": (".geojson", write_objects_geojson),
    "parquet": (".parquet", write_objects_parquet),
    "csv": (".csv", write_objects_csv),
    "annotation-store": (".db", write_annotation_store),
    "spatialdata": (".zarr", write_objects_spatialdata),
}
"""Of objects, by the name of `--to`: suffix of the file, and its writer, to which the head is told."""

LABEL_FORMATS: dict[str, tuple[str, Writer]] = {
    "geojson": (".geojson", write_label_polygons),
    "cog": (".tif", write_label_tiff),
    "ome-zarr": (".ome.zarr", write_label_ome_zarr),
    "spatialdata": (".zarr", write_label_spatialdata),
    "parquet": (".parquet", write_objects_parquet),
    "csv": (".csv", write_objects_csv),
    "annotation-store": (".db", write_annotation_store),
}
"""The same of label images: pixels, or their regions as polygons."""

ANSWER_FORMATS: dict[str, tuple[str, Writer]] = {
    "csv": (".csv", write_answers_csv),
    "parquet": (".parquet", write_answers_parquet),
    "geojson": (".geojson", write_answers_geojson),
    "trident-h5": (".h5", write_answers_hdf5),
}
"""The same of classes and numbers of tiles, and of slides."""

HEAD_SUFFIXES = {name: suffix for formats in (LABEL_FORMATS, OBJECT_FORMATS, ANSWER_FORMATS) for name, (suffix, _) in formats.items()}


def head_writer(slide: Slide, head: str, name: str) -> Writer:
    """What writes a head's answer in a format.

    Raises
    ------
    InputError
        The slide has no answer of the head, of whatever kind.
    ConfigError
        The format is not for what the head leaves.
    """
    if slide.folder.exists(shapes_key(head)):
        what, formats = "objects", OBJECT_FORMATS
    elif slide.has(labels_path(head)) and slide.head_answer(head).task == "classification":
        what, formats = "a label image", LABEL_FORMATS
    elif has_answers(slide, head):
        what, formats = "answers for tiles or the slide", ANSWER_FORMATS
    else:
        shapes = [key.removesuffix(".parquet").rpartition("/")[2] for key in slide.folder.names(SHAPES) if key.endswith(".parquet")]
        there = sorted({*shapes, *(own for own in slide.heads if slide.has(labels_path(own)) or has_answers(slide, own))})
        raise InputError(
            f"{slide.path} has no objects of {head!r}, nor a label image or other answers; it has {', '.join(there) or 'none of any head'}. Run with that head."
        )
    if name not in formats:
        raise ConfigError(f"--to {name}: {head} leaves {what}, which are written by --to {', '.join(formats)}.")
    return formats[name][1]


def write_head(slide: Slide, target: Target, *, head: str, name: str, **options: Any) -> Written:
    """Write a head's answer, whatever it leaves."""
    return head_writer(slide, head, name)(slide, target, head=head, **options)
