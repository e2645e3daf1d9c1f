"""Overviews that GDAL keeps in a file beside a raster (`<name>.ovr`): levels, where the raster has none of its own, as in GDAL."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import tifffile

from tilestream.errors import InputError
from tilestream.geometry import Level
from tilestream.sources.tiff.chain import check_chain
from tilestream.sources.tiff.coding import TIFFFILE_ERRORS
from tilestream.sources.tiff.pages import Pages, pick_levels

BESIDE = ".ovr"
_T = TypeVar("_T")


def overviews_beside(address: str, page: Any, make: Callable[[Level, Pages, str], _T]) -> tuple[tuple[_T, ...], tuple[str, ...]]:
    """What is made of each overview beside a local file of which a tifffile page is the image, finest first; and what is to be told of those that are not used."""
    path = f"{address}{BESIDE}"
    if not os.path.isfile(path):  # noqa: PTH113  # addresses are strings
        return (), ()
    try:
        check_chain(path)
        with tifffile.TiffFile(path) as opened:
            found = pick_levels(opened, Pages(page, smaller=[each.aspage() for each in opened.pages]))[1:]
            made = tuple(make(level, each, path) for level, each in found)
    except (InputError, *TIFFFILE_ERRORS) as error:
        words = str(error).partition("\n")[0].removeprefix(f"{path}: ").rstrip(".") or type(error).__name__
        return (), (f"{path} cannot be read, and its overviews are not used: {words}. gdaladdo makes them again.",)
    unlike = f"{path} holds no smaller copies of the image that are stored as it is, and is not used. gdaladdo makes overviews again."
    return made, () if made else (unlike,)
