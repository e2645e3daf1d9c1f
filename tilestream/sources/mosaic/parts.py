"""What a mosaic is made of: files, the order in which they cover each other, and what a VRT or a list says of them."""

from __future__ import annotations

from dataclasses import dataclass

from tilestream.config.bands.band import Band
from tilestream.geometry import Region, Size
from tilestream.sources.bands import Nodata

MOST_FILES = 500
"""Files of a mosaic; each is open while it is read, and systems give a process about a thousand."""

Affine = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f as in `GeoReference`."""


@dataclass(frozen=True)
class Part:
    """One file of a mosaic."""

    path: str
    bands: tuple[int | None, ...] | None = None
    """For each band of the mosaic the band of this file, None where it has none of it; None for the file's bands as they are."""
    taken: Region | None = None
    """The pixels of the file that are taken; None for all."""
    corner: tuple[int, int] | None = None
    """Level-0 y, x in the mosaic of the first of them; None where its own place on the map says."""
    own_nodata: bool = True
    """Whether what the file itself calls nodata lets others show through."""
    nodata: float | None = None
    """The value that does, where `own_nodata` is not asked; None where nothing does."""
    stated: Nodata = None
    """What stands for nothing in the file's bands, where `own_nodata` is asked and the file itself does not say."""
    masked: bool = True
    """Whether the file's alpha and its mask let others show through."""


@dataclass(frozen=True)
class Listed:
    """The files of a mosaic, and what is said of the whole."""

    kind: str
    """What lists them, in words: a VRT, a folder, ..."""
    parts: tuple[Part, ...]
    """The first lies on top."""
    order: str
    """Which file shows where several lie, in words."""
    bands: tuple[Band, ...] = ()
    """What is said of the bands; empty where the files say."""
    size: Size | None = None
    """Level-0 px; None for what all parts cover together."""
    transform: Affine | None = None
    """Where the whole lies; None where the files say."""
    crs: str = ""
    """A code or WKT; "" where the files say."""
    nodata: Nodata = None
    """The value that stands for nothing in what comes out, in all bands or in each."""
    alpha: int | None = None
    """Which band of the whole is said to be alpha; None where the files say."""
