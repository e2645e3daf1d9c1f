"""Which pages of a TIFF file are the image: the scene, its pyramid levels, and what it says of its resolution.

Levels are tifffile's (Aperio: tiled pages that are not reduced; NDPI: by magnification; OME-TIFF: SubIFDs; others: pages with the
reduced-resolution bit of NewSubfileType, TIFF 6.0 section 8), less those that are masks (bit 4) or have another shape than level 0.
"""

from __future__ import annotations

import re
from typing import Any

import tifffile

from tilestream.errors import InputError
from tilestream.geometry import Level, Size, downsample_from_sizes
from tilestream.sources.base import SourceOptions
from tilestream.sources.files import NoGridError
from tilestream.sources.resolution import (
    PLACEHOLDER_MPP,
    UNKNOWN,
    Resolution,
    micrometres_from_unit,
    parse_number,
    resolution_from_config,
    resolution_from_file,
)
from tilestream.sources.sample_values import Choices

OTHER_KINDS = {"scn": "Leica SCN", "bif": "Ventana BIF with overlapping tiles", "philips": "Philips TIFF with padded levels"}
"""Series kinds whose geometry lies in metadata that OpenSlide reads and tifffile does not apply."""

ASSOCIATED = re.compile(r"\b(label|macro|map|overview|thumbnail)\b", re.IGNORECASE)
"""Names of images that accompany a slide."""

COMPARABLE_AREA = 0.1
"""Share of the largest image's area from which another image counts as a scene of its own."""

REDUCED_BIT, MASK_BIT = 1, 4
"""Of NewSubfileType: a smaller copy of another page, a transparency mask."""
ASPECT_TOLERANCE = 0.01


def pick_series(tif: tifffile.TiffFile, choices: Choices) -> tuple[int, Any]:
    """Index and tifffile series of the scene to read; noted in `choices` where several could be meant. Raises InputError."""
    address = choices.address
    images = [(k, s) for k, s in enumerate(tif.series) if not _is_mask(s.keyframe) and not ASSOCIATED.search(s.name or "")]
    if not images:
        raise NoGridError(f"{address}: tifffile finds no image in the file")
    for _, series in images:
        if series.kind in OTHER_KINDS:
            raise NoGridError(f"{address}: {OTHER_KINDS[series.kind]} is no regular grid of tiles")
    if any(_area(s) == 0 for _, s in images):
        page = next(s for _, s in images if _area(s) == 0).keyframe
        raise InputError(
            f"{address}: an image of {page.imagelength} x {page.imagewidth} px has no pixels. The file is damaged; export it again."
        )
    largest = max(_area(s) for _, s in images)
    scenes = [(k, s) for k, s in images if _area(s) >= COMPARABLE_AREA * largest and not int(s.keyframe.subfiletype) & REDUCED_BIT]
    scenes = scenes or images[:1]
    wanted = choices.options.scene
    if wanted is not None:
        if not 0 <= wanted < len(scenes):
            raise InputError(f"{address}: source.scene: {wanted}, but the file has scenes 0 to {len(scenes) - 1}.")
        return scenes[wanted]
    if len(scenes) > 1:
        sizes = ", ".join(f"{k}: {s.keyframe.imagelength} x {s.keyframe.imagewidth}" for k, (_, s) in enumerate(scenes))
        choices.refuse(f"the file holds {len(scenes)} images ({sizes})", "scene", "0")
    return scenes[0]


def _area(series: Any) -> int:
    return int(series.keyframe.imagelength) * int(series.keyframe.imagewidth)


def _is_mask(page: Any) -> bool:
    return bool(int(page.subfiletype) & MASK_BIT)


def pick_levels(tif: tifffile.TiffFile, series: Any) -> list[tuple[Level, Any]]:
    """Geometry and tifffile series of each level, finest first, each coarser than the one before.

    tifffile joins pages of a plain TIFF to a pyramid only where their sizes are whole fractions; pages with the reduced-resolution
    bit whose size is another fraction (downsample 2.001) are levels, too, as they are for OpenSlide.
    """
    apart = [s for s in tif.series if s is not series and int(s.keyframe.subfiletype) & REDUCED_BIT and not ASSOCIATED.search(s.name or "")]
    plain = series.kind not in ("svs", "ndpi", "ome")
    base = series.keyframe
    l0_size = Size(int(base.imagelength), int(base.imagewidth))
    found = [(Level(l0_size, 1.0), series.levels[0])]
    for candidate in [*series.levels[1:], *(apart if plain else [])]:
        page = candidate.keyframe
        if _is_mask(page) or _area(candidate) == 0 or (page.dtype, page.samplesperpixel) != (base.dtype, base.samplesperpixel):
            continue
        size = Size(int(page.imagelength), int(page.imagewidth))
        if same_aspect(l0_size, size) and candidate.axes == series.axes:
            found.append((Level(size, downsample_from_sizes(l0_size, size)), candidate))
    found.sort(key=lambda pair: pair[0].downsample)
    return [pair for k, pair in enumerate(found) if k == 0 or pair[0].downsample > found[k - 1][0].downsample]


def same_aspect(l0_size: Size, size: Size) -> bool:
    """Whether `size` is level 0 made smaller: both sides by one factor, within 1 % or 2 px for rounding."""
    factor = l0_size.width / size.width
    return abs(l0_size.height / factor - size.height) <= max(2.0, ASPECT_TOLERANCE * size.height)


def vendor_of(tif: tifffile.TiffFile, series: Any) -> str:
    """Format family, in OpenSlide's words where it has one."""
    if series.kind == "svs":
        return "aperio"
    if series.kind == "ndpi":
        return "hamamatsu"
    if tif.is_ome:
        return "ome-tiff"
    return "geotiff" if series.keyframe.is_geotiff else "generic-tiff"


def read_resolution(tif: tifffile.TiffFile, number: int, series: Any, address: str, options: SourceOptions) -> Resolution:
    """The resolution of level 0, from the config or else from the file. Raises InputError where pixels are not square."""
    if options.mpp is not None:
        return resolution_from_config(options.mpp)
    vendor = vendor_of(tif, series)
    if vendor == "aperio":
        return _from_aperio(series.keyframe.description, address)
    if vendor == "ome-tiff":
        return _from_ome(tif.ome_metadata or "", number, address)
    if vendor == "geotiff":
        return UNKNOWN  # its pixel scale is in units of the map
    limit = float("inf") if vendor == "hamamatsu" else PLACEHOLDER_MPP
    return _from_tags(series.keyframe, address, limit)


def _from_aperio(description: str, address: str) -> Resolution:
    found = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", description)
    if found is None:
        return UNKNOWN
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


def micrometres(unit: str | None) -> float | None:
    """Micrometres per OME unit; the schema's default is µm."""
    return 1.0 if unit is None else micrometres_from_unit(unit)


def _from_tags(page: Any, address: str, limit: float) -> Resolution:
    """XResolution and YResolution, pixels per inch or cm (TIFF 6.0 section 8); as OpenSlide, where ResolutionUnit says which."""
    per_unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, default=2)))
    stated = [page.tags.valueof(code) for code in (282, 283)]
    if per_unit is None or any(value is None for value in stated):
        return UNKNOWN
    sides = [per_unit * denominator / numerator if numerator else float("nan") for numerator, denominator in stated]
    return resolution_from_file(address, sides[0], sides[1], "the TIFF resolution tags", limit=limit)
