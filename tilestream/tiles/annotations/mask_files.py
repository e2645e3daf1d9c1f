"""Which file says where the tissue of a slide is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tilestream.config.local_files import refuse_special
from tilestream.config.schema import Config, Tissue
from tilestream.config.slide_list import SlideRef
from tilestream.errors import InputError
from tilestream.sources import open_source
from tilestream.sources.base import SlideInfo, SourceOptions
from tilestream.tiles.annotations.cover import GEOJSON, MARKUP

SLIDE = "{slide}"
"""Stands for a slide's id in `tiles.tissue.mask`."""

SUFFIXES = (*GEOJSON, *MARKUP, ".png", ".tif", ".tiff")
"""Behind a slide's id, or the name of its file, in a folder of masks."""


def mask_file(config: Config, ref: SlideRef) -> Path | None:
    """The file that says where a slide's tissue is: that of the slide list, else that of `tiles.tissue.mask`; None where there is none.

    Raises
    ------
    InputError
        A file is named, or a folder or pattern is, but there is none for this slide, or a folder has several.
    """
    if ref.mask is not None:
        return _existing(Path(ref.mask), f"{ref.id}: the slide list's mask")
    given = config.tiles.tissue.mask
    if given is None:
        return None
    where = f"{ref.id}: tiles.tissue.mask"
    if SLIDE in given:
        return _existing(Path(given.replace(SLIDE, ref.id)), where)
    if not Path(given).is_dir():
        return _existing(Path(given), where)
    names = dict.fromkeys((ref.id, PurePosixPath(ref.address).name))
    tried = [Path(given) / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    there = [path for path in tried if path.is_file()]
    if not there:
        raise InputError(
            f"{where}: the folder {given} has no file {ref.id}.geojson, .json, .xml, .png or the like. "
            f"Add one, leave the slide out, or name a pattern such as masks/{SLIDE}.geojson."
        )
    if len(there) > 1:
        raise InputError(f"{where}: the folder {given} has {there[0].name} and {there[1].name} for one slide. Keep one of them.")
    return there[0]


def _existing(path: Path, where: str) -> Path:
    refuse_special(path, where)
    if not path.is_file():
        raise InputError(f"{where}: there is no file {path}. Draw one, correct the name, or leave the slide out.")
    return path


def bounds_corner(tissue: Tissue, info: SlideInfo) -> tuple[int, int]:
    """Level-0 y, x from which the polygons of a slide count: with `tiles.tissue.in_bounds` the corner of OpenSlide's bounds, where it has them."""
    if not tissue.in_bounds:
        return 0, 0
    told = info.properties
    if info.backend == "tiff":
        try:
            with open_source(info.address, SourceOptions(backend="openslide", mpp=info.mpp)) as source:
                told = source.info.properties
        except InputError:  # what OpenSlide cannot open has no bounds of OpenSlide's
            return 0, 0
    return int(told.get("openslide.bounds-y", 0)), int(told.get("openslide.bounds-x", 0))
