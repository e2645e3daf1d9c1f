"""Which files a mosaic is made of, by what names it: a VRT, STAC items, `mosaic://` before a folder, a pattern or a list of paths."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from tilestream.config.local_files import MOSAIC, SMALL_FILE, read_small_file
from tilestream.config.urls.objects import is_url
from tilestream.errors import ConfigError, InputError, NotThereError
from tilestream.sources.mosaic.parts import MOST_FILES, Listed, Part
from tilestream.sources.mosaic.stac import read_stac
from tilestream.sources.mosaic.vrt import read_vrt

SUFFIXES = (".tif", ".tiff")
"""Of the files of a folder that belong to its mosaic."""

FIRST_ON_TOP = "the first file by {by} on top, as rasterio.merge has it"


def list_parts(address: str) -> Listed:
    """The files of a mosaic. Raises InputError."""
    path = address.removeprefix(MOSAIC)
    if path.lower().endswith(".vrt"):
        listed = read_vrt(path)
    elif path.lower().endswith(".json"):
        listed = read_stac(path)
    elif path.lower().endswith(".txt"):
        listed = Listed("a list of files", _of(_lines(path)), FIRST_ON_TOP.format(by="its place in the list"))
    elif os.path.isdir(path):  # noqa: PTH112  # addresses are strings
        found = sorted(str(each) for each in Path(path).iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith("."))
        listed = Listed("a folder", _of(found), FIRST_ON_TOP.format(by="name"))
    else:
        found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]  # noqa: PTH207
        listed = Listed("a pattern", _of(found), FIRST_ON_TOP.format(by="name"))
    if not listed.parts:
        raise NotThereError(f"{address}: names no file. Check the path; GeoTIFFs end in {' or '.join(SUFFIXES)}.")
    files = {part.path for part in listed.parts}
    if len(files) > MOST_FILES:
        raise InputError(
            f"{address}: names {len(files)} files, the limit is {MOST_FILES}. Make several mosaics, or one file: gdal_translate -of COG."
        )
    return listed


def _of(paths: list[str]) -> tuple[Part, ...]:
    return tuple(Part(path) for path in paths)


def _lines(path: str) -> list[str]:
    """The paths and URLs of a text file, one a line, paths relative to its folder; what follows # at the start of a line is none."""
    try:
        text = read_small_file(path, "", "Give a text file with one path a line.", SMALL_FILE).decode("utf-8-sig")
    except (ConfigError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of paths: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    folder = Path(path).absolute().parent
    return [line if is_url(line) else str(folder / line) for line in lines if line and not line.startswith("#")]
