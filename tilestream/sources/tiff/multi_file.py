"""OME-TIFF in several files: which they are, and whether all that are wanted are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tifffile

from tilestream.errors import InputError
from tilestream.sources.files import NoGridError

_FILE_NAME = re.compile(r'<UUID\b[^>]*\bFileName="([^"]+)"')
_METADATA_FILE = re.compile(r'<BinaryOnly\b[^>]*\bMetadataFile="([^"]+)"')
MOST_NAMES = 5
"""Files that are named in a message."""


def check_files(tif: tifffile.TiffFile, series: Any, numbers: tuple[int, ...], address: str) -> None:
    """Refuse an image of which a page that is wanted lies in a file that is not there.

    Raises
    ------
    InputError
        Naming the missing files, or the file that holds the metadata of this one.
    NoGridError
        A page is missing, and nothing says where it should be.
    """
    description = tif.pages.first.description
    if (companion := _METADATA_FILE.search(description)) is not None:
        raise InputError(
            f"{address}: is one of several files of an OME-TIFF, and what it holds is told in {companion[1]}. "
            f"Convert the whole to OME-Zarr: bioformats2raw {companion[1]} image.zarr."
        )
    if all(series.pages[number] is not None for number in numbers):
        return
    folder = Path(address).parent
    missing = [name for name in dict.fromkeys(_FILE_NAME.findall(description)) if not (folder / name).is_file()]
    if not missing:
        raise NoGridError(f"{address}: pages of the image are missing from this file")
    named = ", ".join(missing[:MOST_NAMES]) + (f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else "")
    raise InputError(
        f"{address}: its image lies in several files, and {len(missing)} of them are not in {folder}: {named}. "
        "Put them beside this one, or choose channels that are there with source.channels."
    )
