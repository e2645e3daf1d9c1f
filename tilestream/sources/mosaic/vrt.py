"""GDAL's virtual rasters (VRT), the simple case: files put side by side or band by band, pixel for pixel.

Source: https://gdal.org/en/stable/drivers/raster/vrt.html. What scales, resamples, warps or computes is refused by its name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from tilestream.config.bands.band import Band
from tilestream.config.local_files import read_small_file
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import Region, Size
from tilestream.sources.bands import nodata_of
from tilestream.sources.geo import crs_words
from tilestream.sources.mosaic.parts import Affine, Listed, Part

LARGEST_VRT = 64 * 1024**2
"""Bytes: a hundred thousand sources."""

WAY_OUT = "Make a GeoTIFF of it: gdal_translate -of COG {path} whole.tif."

DATASET_TAGS = frozenset({"SRS", "GeoTransform", "Metadata", "VRTRasterBand", "BlockXSize", "BlockYSize", "OverviewList", "MaskBand"})
BAND_TAGS = frozenset({
    "NoDataValue", "ColorInterp", "Description", "Metadata", "Histograms", "Offset", "Scale", "UnitType", "SimpleSource", "ComplexSource", "CategoryNames", "HideNoDataValue",
})  # fmt: skip
SOURCE_TAGS = frozenset({"SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"})
"""Elements that say nothing more than what is read here, or nothing that changes a pixel."""

NEAR = 0.01
"""Pixels by which a rectangle may lie off whole ones: GDAL writes them from floats."""


@dataclass(frozen=True)
class _Source:
    """One source of one band."""

    path: str
    band: int
    taken: Region
    corner: tuple[int, int]
    nodata: float | None
    masked: bool
    """Whether what the file's alpha or mask leaves out lets others show through."""

    @property
    def key(self) -> tuple[object, ...]:
        return self.path, self.taken, self.corner, self.nodata, self.masked


def read_vrt(path: str) -> Listed:
    """What a VRT says. Raises InputError naming what is not read."""
    root = _parse(path)
    if root.tag != "VRTDataset" or root.get("subClass"):
        raise _refused(path, f"is a {root.get('subClass') or root.tag}, and a VRTDataset of files side by side is read")
    _refuse_others(root, DATASET_TAGS, path)
    size = Size(*(_whole(root.get(name), f"rasterXSize or rasterYSize of {path}") for name in ("rasterYSize", "rasterXSize")))
    bands = root.findall("VRTRasterBand")
    if not bands:
        raise _refused(path, "has no band")
    sources = [list(_sources(band, path)) for band in bands]
    told = [_number(band.findtext("NoDataValue")) for band in bands]
    return Listed(
        kind="a VRT",
        parts=_parts(sources, path, has_mask=root.find("MaskBand") is not None),
        order="the last source of the VRT on top, as GDAL has it",
        bands=tuple(_band(band) for band in bands),
        size=size,
        transform=_transform(root.findtext("GeoTransform"), path),
        crs=crs_words(root.findtext("SRS") or ""),
        nodata=nodata_of(told),
        alpha=next((number for number, band in enumerate(bands) if _interpreted(band) == "alpha"), None),
    )


def _parse(path: str) -> ET.Element:
    """The document. What declares entities is not parsed at all, as nothing that GDAL writes does."""
    try:
        data = read_small_file(path, "", "Give a VRT of GDAL's.", LARGEST_VRT)
    except ConfigError as error:
        raise InputError(str(error)) from error
    if b"\0" in data or re.search(rb"<!\s*(DOCTYPE|ENTITY)", data, re.IGNORECASE):
        raise _refused(path, "declares a document type, or is not UTF-8")
    try:
        return ET.fromstring(data)  # noqa: S314  # without a document type there are no entities
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: is no XML: {error}. Write it again with gdalbuildvrt.") from error


def _refused(path: str, problem: str) -> InputError:
    return InputError(f"{path}: {problem}. {WAY_OUT.format(path=path)}")


def _refuse_others(element: ET.Element, known: frozenset[str], path: str) -> None:
    for child in element:
        if child.tag not in known:
            raise _refused(path, f"<{element.tag}> has <{child.tag}>, which is not read")
        if child.tag == "MaskBand" and any("mask" not in (each.text or "") for each in child.iter("SourceBand")):
            raise _refused(path, "its <MaskBand> is made of something else than the masks of its files, which is not read")


def _sources(band: ET.Element, path: str) -> Iterator[_Source]:
    if band.get("subClass"):
        raise _refused(path, f"a band is a {band.get('subClass')}, which is not read")
    _refuse_others(band, BAND_TAGS, path)
    for element in band:
        if element.tag in ("SimpleSource", "ComplexSource"):
            _refuse_others(element, SOURCE_TAGS, path)
            yield _source(element, path)


def _source(element: ET.Element, path: str) -> _Source:
    file = _file(element.find("SourceFilename"), path)
    number = (element.findtext("SourceBand") or "1").strip()
    if not number.isdecimal():
        raise _refused(path, f"a source takes the band {number!r} of {file}; numbers are read")
    rects = [_rect(element.find(name), f"{name} of {file} in {path}") for name in ("SrcRect", "DstRect")]
    (y, x, height, width), (to_y, to_x, to_height, to_width) = rects
    if max(abs(height - to_height), abs(width - to_width)) > NEAR:
        raise _refused(path, f"{file}: {height:g} x {width:g} px are scaled to {to_height:g} x {to_width:g}; pixels are taken as they are")
    taken = [_near_whole(value, f"{path}: {file}: SrcRect and DstRect") for value in (y, x, height, width)]
    corner = [_near_whole(value, f"{path}: {file}: SrcRect and DstRect") for value in (to_y, to_x)]
    return _Source(file, int(number) - 1, Region(*taken), (corner[0], corner[1]), _number(element.findtext("NODATA")), _uses_mask(element))


def _file(element: ET.Element | None, path: str) -> str:
    name = "" if element is None else (element.text or "").strip()
    if element is None or not name:
        raise _refused(path, "a source names no file")
    if "://" in name or name.startswith("/vsi"):
        raise _refused(path, f"a source is {name}, which is no file on a disk")
    relative = element.get("relativeToVRT", "0") == "1"
    return os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(path)), name)) if relative else os.path.abspath(name)  # noqa: PTH100, PTH118, PTH120  # as GDAL, which follows links


def _rect(element: ET.Element | None, what: str) -> tuple[float, float, float, float]:
    """y, x, height, width."""
    found = [math.nan if element is None else (_number(element.get(name)) or 0.0) for name in ("yOff", "xOff", "ySize", "xSize")]
    if not all(map(math.isfinite, found)) or min(found[2:]) < 1:
        raise InputError(f"{what} is no rectangle of pixels. Write the VRT again with gdalbuildvrt.")
    return found[0], found[1], found[2], found[3]


def _near_whole(value: float, what: str) -> int:
    if abs(value - round(value)) > NEAR:
        raise InputError(
            f"{what} lie at {value:g} px, between pixels; all of a mosaic lie on one grid. Warp the files to one: gdalwarp -tap -tr."
        )
    return round(value)


def _whole(text: str | None, what: str) -> int:
    value = _number(text)
    if value is None or not (value >= 1 and value == int(value) and value < 2**31):
        raise InputError(f"{what} is {text!r}, and no number of pixels. Write the VRT again with gdalbuildvrt.")
    return int(value)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _transform(text: str | None, path: str) -> Affine | None:
    if text is None:
        return None
    found = [_number(each) for each in text.split(",")]
    if len(found) != 6 or any(value is None or not math.isfinite(value) for value in found):
        raise InputError(f"{path}: GeoTransform is {text.strip()!r}, and not six numbers. Write the VRT again with gdalbuildvrt.")
    c, a, b, f, d, e = (float(value or 0.0) for value in found)
    return a, b, c, d, e, f


def _uses_mask(element: ET.Element) -> bool:
    return (element.findtext("UseMaskBand") or "").strip().lower() in ("true", "1", "yes", "on")


def _interpreted(band: ET.Element) -> str:
    return (band.findtext("ColorInterp") or "").strip().lower()


def _colour(band: ET.Element) -> str:
    word = _interpreted(band)
    return word if word in ("red", "green", "blue") else ""


def _band(band: ET.Element) -> Band:
    """What is said of a band; scale and offset are said, not applied."""
    scale, offset = _number(band.findtext("Scale")), _number(band.findtext("Offset"))
    return Band((band.findtext("Description") or _colour(band)).strip(), scale=scale or 1.0, offset=offset or 0.0)


def _parts(sources: list[list[_Source]], path: str, *, has_mask: bool) -> tuple[Part, ...]:
    """Sources of all bands by file and place, the last of each band first. Of masks only what the VRT asks for counts, as GDAL has it."""
    groups: dict[tuple[object, ...], dict[int, _Source]] = {}
    for number, of_band in enumerate(sources):
        for source in of_band:
            if groups.setdefault(source.key, {}).setdefault(number, source) is not source:
                raise _refused(path, f"{source.path} stands twice in band {number + 1}")
    order = {key: place for place, key in enumerate(groups)}
    for number, of_band in enumerate(sources):
        if [order[source.key] for source in of_band] != sorted(order[source.key] for source in of_band):
            raise _refused(path, f"the files of band {number + 1} cover each other in another order than those of the bands before it")
    made = []
    for group in groups.values():
        first = next(iter(group.values()))
        bands = tuple(group[number].band if number in group else None for number in range(len(sources)))
        made.append(
            Part(first.path, bands, first.taken, first.corner, own_nodata=False, nodata=first.nodata, masked=first.masked or has_mask)
        )
    return tuple(reversed(made))
