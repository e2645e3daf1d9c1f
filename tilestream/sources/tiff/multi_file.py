"""OME-TIFF in several files: which they are, and whether all that are wanted are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tifffile

from tilestream.config.local_files import refuse_special
from tilestream.errors import InputError
from tilestream.sources.files import NoGridError
from tilestream.sources.tiff.strips import rows_at_once

_FILE_NAME = re.compile(r'<UUID\b[^>]*\bFileName="([^"]+)"')
_METADATA_FILE = re.compile(r'<BinaryOnly\b[^>]*\bMetadataFile="([^"]+)"')
MOST_NAMES = 5
"""Files that are named in a message."""


def name_files(tif: tifffile.TiffFile, address: str) -> tuple[str, ...]:
    """A sentence that names the files in which an image lies; none where the OME-XML speaks of no others."""
    names, missing = _files(tif.pages.first.description, address)
    if len(names) < 2:
        return ()
    return (
        f"the image lies in {len(names)} files: {_some(names)}"
        + (f" (not in {Path(address).parent}: {_some(missing)})" if missing else ""),
    )


def refuse_companion(tif: tifffile.TiffFile, address: str) -> None:
    """Refuse a file whose metadata lies in another one, whether or not that is there. Raises InputError naming it."""
    if len(tif.pages) and (companion := _METADATA_FILE.search(tif.pages.first.description)) is not None:
        raise InputError(
            f"{address}: is one of several files of an OME-TIFF, and what it holds is told in {companion[1]}. "
            f"Convert the whole to OME-Zarr: bioformats2raw {companion[1]} image.zarr."
        )


def refuse_several_files(tif: tifffile.TiffFile, address: str) -> None:
    """Refuse an object whose image lies in other files as well, before tifffile looks for them on this machine. Raises InputError."""
    if len(tif.pages) == 0:
        return
    names = list(dict.fromkeys(_FILE_NAME.findall(tif.pages.first.description)))
    if len(names) > 1:
        raise InputError(
            f"{address}: its image lies in several files: {_some(names)}. They are read from a local folder only: copy them there, "
            "or convert the whole to OME-Zarr, which is read where it lies."
        )


def refuse_special_files(tif: tifffile.TiffFile, address: str) -> None:
    """Refuse an image of which a file is a FIFO, a socket or a device, before tifffile waits for it. Raises InputError."""
    if len(tif.pages) == 0:
        return
    for name in _files(tif.pages.first.description, address)[0]:
        refuse_special(Path(address).parent / name)


def _files(description: str, address: str) -> tuple[list[str], list[str]]:
    """Names of the files that an OME-XML speaks of, and of those among them that are not beside this one."""
    names = list(dict.fromkeys(_FILE_NAME.findall(description)))
    return names, [name for name in names if not (Path(address).parent / name).is_file()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def check_files(tif: tifffile.TiffFile, series: Any, numbers: tuple[int, ...], address: str) -> None:
    """Refuse an image of which a page that is wanted lies in a file that is not there, is no TIFF, or holds another kind of picture.

    Raises
    ------
    InputError
        Naming those files.
    NoGridError
        A page is missing, and nothing says where it should be.
    """
    pages = [series.pages[number] for number in numbers]
    if all(page is not None for page in pages):
        for page in pages:
            _check_alike(page, series.keyframe, address)
        return
    names, missing = _files(tif.pages.first.description, address)
    if not missing and (damaged := [name for name in names if not _is_tiff(Path(address).parent / name)]):
        raise InputError(
            f"{address}: its image lies in several files, and of them {_some(damaged)} cannot be read as TIFF. Copy them again from their origin."
        )
    if not missing:
        raise NoGridError(f"{address}: pages of the image are missing from this file")
    raise InputError(
        f"{address}: its image lies in several files, and {len(missing)} of them are not in {Path(address).parent}: {_some(missing)}. "
        "Put them beside this one, or choose channels that are there with source.channels."
    )


def _is_tiff(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tif:
            return len(tif.pages) > 0
    except (OSError, ValueError):  # of which tifffile's own error is one
        return False


def own_page(frame: Any, first: Any, address: str) -> Any:
    """A plane of a stack with tags of its own: tifffile takes all to be coded as `first` is. Raises InputError where it is no such picture."""
    if frame.keyframe is frame or frame.is_virtual:
        page = frame
    else:
        file = frame.parent.filehandle
        closed = bool(file.closed)
        if closed:
            file.open()
        try:
            page = frame.aspage()
        finally:
            if closed:
                file.close()
    if page.keyframe is page and _layout(page) != _layout(first):
        raise InputError(
            f"{address}: its planes are pictures of several kinds: page {page.index} is {_told(page)}, and the first {_told(first)}. "
            "Export them alike, or convert the whole to OME-Zarr."
        )
    return page


def _layout(page: Any) -> tuple[Any, ...]:
    """What planes that are read together, each by its own codec, have in common."""
    pieces = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, page.imagelength), rows_at_once(page))
    return page.shape, page.dtype, page.bitspersample, page.photometric, page.planarconfig, bool(page.is_tiled), pieces


def _check_alike(page: Any, first: Any, address: str) -> None:
    """Refuse a page of another file that is not made as the first one is: what is read by file tile has one grid and one coding."""
    other = page.keyframe
    if other is not first and page.parent is not first.parent and _told(other) != _told(first):
        raise InputError(
            f"{address}: its image lies in several files, and {page.parent.filehandle.name} is another kind of picture: {_told(other)}, and the first "
            f"{_told(first)}. Export them alike, or convert the whole to OME-Zarr."
        )


def _told(page: Any) -> str:
    """What a page is, as far as reading by file tile depends on it."""
    pieces = f"tiles of {page.tilelength} x {page.tilewidth}" if page.is_tiled else f"strips of {page.rowsperstrip} rows"
    size = " x ".join(str(side) for side in page.shape)
    return f"{size} {page.dtype} {page.photometric.name} in {pieces}, {page.compression.name}"
