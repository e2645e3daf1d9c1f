"""What a TIFF file says of its resolution: the description of Aperio and ImageJ, OME-XML, the map that a GeoTIFF lies on, the resolution tags."""

from __future__ import annotations

import re
from typing import Any

import tifffile

from tilestream.errors import InputError
from tilestream.sources.base import SourceOptions
from tilestream.sources.geo import GeoReference
from tilestream.sources.resolution import (
    INCH,
    PLACEHOLDER_MPP,
    UNKNOWN,
    Resolution,
    micrometres_from_unit,
    parse_number,
    resolution_from_config,
    resolution_from_file,
)
from tilestream.sources.tiff.pages import vendor_of


def read_resolution(
    tif: tifffile.TiffFile, number: int, series: Any, address: str, options: SourceOptions, geo: GeoReference | None
) -> Resolution:
    """The resolution of level 0, from the config or else from the file. Raises InputError where pixels are not square."""
    if options.mpp is not None:
        return resolution_from_config(options.mpp)
    vendor, page = vendor_of(tif, series), series.keyframe
    if vendor == "ome-tiff":
        stated = _from_ome(tif.ome_metadata or "", number, address)
        return _from_tags(page, address, PLACEHOLDER_MPP) if stated == UNKNOWN else stated
    if geo is not None and (page.is_geotiff or geo.crs or geo.name):
        return geo.resolution()
    stated = UNKNOWN
    if is_aperio(page.description):
        stated = _from_aperio(page.description, address)
    elif series.kind == "imagej":
        stated = _from_imagej(tif.imagej_metadata or {}, page, address)
    elif page.description.lstrip().startswith("<?xml"):
        stated = _from_vips(page, address)
    if stated != UNKNOWN or vendor == "aperio":
        return stated
    limit = float("inf") if vendor == "hamamatsu" else PLACEHOLDER_MPP
    return _from_tags(page, address, limit)


def states_resolution(tif: tifffile.TiffFile, number: int, series: Any, address: str) -> bool:
    """Whether a file itself says how large its pixels are, as slides do."""
    try:
        return read_resolution(tif, number, series, address, SourceOptions(), None).mpp is not None
    except InputError:  # pixels that are not square
        return True


def is_aperio(description: str) -> bool:
    """Whether an ImageDescription is Aperio's: pairs of key and value behind bars, whatever the layout of the file."""
    return description.lstrip().startswith("Aperio") and "|" in description


def _from_aperio(description: str, address: str) -> Resolution:
    found = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", description)
    if found is None:
        return UNKNOWN
    if re.search(r"->\s*\d+\s*x\s*\d+", description):  # a thumbnail's: the words are those of the slide that it was made from
        return Resolution(None, "", ("the Aperio description states the MPP of a larger image; mpp is taken as unknown.",))
    mpp, warnings = parse_number(found[1])
    stated = resolution_from_file(address, mpp, mpp, "the Aperio description")
    return Resolution(stated.mpp, stated.source, warnings + stated.warnings)


def _from_ome(xml: str, number: int, address: str) -> Resolution:
    """PhysicalSizeX and PhysicalSizeY of the image, in µm unless a unit is given (OME schema 2016-06, Pixels)."""
    images = tifffile.xml2dict(xml).get("OME", {}).get("Image", [])
    images = images if isinstance(images, list) else [images]
    pixels = images[number].get("Pixels", {}) if number < len(images) else {}
    sides = []
    for axis in "XY":
        size, unit = pixels.get(f"PhysicalSize{axis}"), micrometres(pixels.get(f"PhysicalSize{axis}Unit"))
        if size is None or unit is None:
            return UNKNOWN
        sides.append(float(size) * unit)
    return resolution_from_file(address, sides[0], sides[1], "the OME metadata")


def _from_imagej(metadata: dict[str, Any], page: Any, address: str) -> Resolution:
    r"""XResolution and YResolution in pixels per `unit`, as ImageJ and Fiji write them; the unit may be escaped, as in \u00B5m."""
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    per_unit = micrometres_from_unit(unit)
    if per_unit is None:
        return UNKNOWN
    return _from_ratios(
        page, per_unit, "ImageJ's unit and the resolution tags", address, PLACEHOLDER_MPP if unit in ("inch", "in") else float("inf")
    )


def _from_vips(page: Any, address: str) -> Resolution:
    """The property openslide.mpp-x that libvips keeps of a slide that it converts, where the image has still its width."""
    text = page.description
    told = {name: re.search(rf"<name>{re.escape(name)}</name>\s*<value[^>]*>([^<]+)</value>", text) for name in
            ("openslide.mpp-x", "openslide.mpp-y", "openslide.level[0].width")}  # fmt: skip
    x, y, width = (None if match is None else parse_number(match[1])[0] for match in told.values())
    if x is None or y is None or width != int(page.imagewidth):
        return UNKNOWN
    return resolution_from_file(address, x, y, "OpenSlide's properties, kept by libvips")


def micrometres(unit: str | None) -> float | None:
    """Micrometres per OME unit; the schema's default is µm."""
    return 1.0 if unit is None else micrometres_from_unit(unit)


def _from_tags(page: Any, address: str, limit: float) -> Resolution:
    """XResolution and YResolution, pixels per inch or cm (TIFF 6.0 section 8); as OpenSlide, where ResolutionUnit says which."""
    per_unit = {2: INCH, 3: 10_000.0}.get(int(page.tags.valueof(296, default=2)))
    return UNKNOWN if per_unit is None else _from_ratios(page, per_unit, "the TIFF resolution tags", address, limit)


def _from_ratios(page: Any, per_unit: float, source: str, address: str, limit: float) -> Resolution:
    """From the tags XResolution and YResolution, pixels per `per_unit` µm."""
    stated = [page.tags.valueof(code) for code in (282, 283)]
    if any(value is None for value in stated):
        return UNKNOWN
    sides = [per_unit * denominator / numerator if numerator else float("nan") for numerator, denominator in stated]
    return resolution_from_file(address, sides[0], sides[1], source, limit=limit)
