"""What a TIFF file calls the channels of an image: OME-XML, GDAL's descriptions of bands, the colours that TIFF itself defines.

Sources: OME schema 2016-06, Channel; GDAL's GeoTIFF driver, tag 42112 (an XML of items with the roles description and colorinterp); TIFF 6.0
section 6, by which the first three samples of RGB are red, green and blue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from tilestream.config.bands.band import Band
from tilestream.sources.tiff.coding import RGB, YCBCR

GDAL_METADATA = 42112
"""The tag."""

UNSAID = frozenset({"", "undefined"})
"""What GDAL calls the colour of a band that has none."""


def read_bands(tif: tifffile.TiffFile, number: int, series: Any) -> tuple[Band, ...]:
    """What is said of each channel of an image: its name, "" where it has none, and of GDAL's bands wavelength, scale and offset."""
    names = _names(tif, number, series)
    items = _gdal_items(str(series.keyframe.tags.valueof(GDAL_METADATA, default="")))
    return tuple(
        Band(
            name,
            wavelength=_number(items.get(("CENTRAL_WAVELENGTH_UM", band))),
            scale=_number(items.get(("scale", band))) or 1.0,
            offset=_number(items.get(("offset", band))) or 0.0,
        )
        for band, name in enumerate(names)
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _names(tif: tifffile.TiffFile, number: int, series: Any) -> tuple[str, ...]:
    """The name of each channel of an image, "" where it has none: of the channel axis, else of the samples of a pixel."""
    page, axes = series.keyframe, dict(zip(str(series.axes), tuple(series.shape), strict=True))
    length = int(axes["C"]) if axes.get("C", 1) > 1 else int(page.samplesperpixel)
    if tif.is_ome:
        named = _ome_names(tif.ome_metadata or "", number)
        return named if len(named) == length else _colours(page, length)
    named = _gdal_names(str(page.tags.valueof(GDAL_METADATA, default="")), length)
    return tuple(name or colour for name, colour in zip(named, _colours(page, length), strict=True))


def _ome_names(xml: str, number: int) -> tuple[str, ...]:
    images = _listed(tifffile.xml2dict(xml).get("OME", {}).get("Image"))
    if number >= len(images):
        return ()
    channels = _listed(images[number].get("Pixels", {}).get("Channel"))
    return tuple(str(channel.get("Name", "")).strip() for channel in channels)


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [] if found is None else [found]


def _gdal_names(xml: str, length: int) -> tuple[str, ...]:
    """The description of each band, else the colour that it is said to have."""
    found = _gdal_items(xml)
    colours = {band: name for (role, band), name in found.items() if role == "colorinterp" and name.casefold() not in UNSAID}
    return tuple(found.get(("description", band)) or colours.get(band, "") for band in range(length))


def _gdal_items(xml: str) -> dict[tuple[str, int], str]:
    """Items of single bands by their role, or their name where they have none, and the number of the band."""
    try:
        items: Iterable[ET.Element] = ET.fromstring(xml.strip("\0 \n")) if xml else ()  # noqa: S314  # expat bounds entities
    except ET.ParseError:
        items = ()
    return {
        (item.get("role") or item.get("name") or "", int(sample)): (item.text or "").strip()
        for item in items
        if (sample := item.get("sample", "")).isdecimal()
    }


def _colours(page: Any, length: int) -> tuple[str, ...]:
    known = ("red", "green", "blue") if int(page.photometric) in (RGB, YCBCR) and length >= 3 else ()
    return known + ("",) * (length - len(known))
