"""TIFF files changed where they stand."""

from __future__ import annotations

import struct
from pathlib import Path

import tifffile


def patch_tag(path: Path, name: str, position: int, value: int) -> None:
    """Overwrite one value of a tag of the first page where it stands."""
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags[name]
        size = tag.dataformat[-1].upper()
        values = [tag.value] if isinstance(tag.value, int) else list(tag.value)
        where, order = tag.valueoffset, tif.byteorder
    values[position] = value
    with path.open("r+b") as file:
        file.seek(where)
        file.write(struct.pack(f"{order}{len(values)}{size}", *values))
