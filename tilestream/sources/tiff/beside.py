"""What files of GDAL's beside a raster say of it: `.aux.xml` (PAM), which counts before the raster's own tags, and world files, which count after them.

Source: https://gdal.org/en/stable/drivers/raster/gtiff.html, Georeferencing; pixels of world files are named by their centres.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from tilestream.config.bands.band import Band
from tilestream.config.local_files import read_small_file
from tilestream.config.urls.objects import beside_url, is_url, path_of, url_with_path
from tilestream.errors import ConfigError, without_credentials
from tilestream.sources.bands import Nodata, nodata_of, sample_of
from tilestream.sources.geo import Affine, GeoReference, crs_words, geo_from_crs, has_place, read_geo, read_nodata
from tilestream.sources.storage.opened import read_small_object

GEOTIFF = "geotiff"
GDALS = (GEOTIFF, "generic-tiff")
"""What GDAL may have written: of others nothing beside them is asked for."""

AUX = ".aux.xml"
LARGEST_AUX = 16 * 1024**2
"""Bytes: histograms of hundreds of bands."""
LARGEST_WORLD = 4096

LIKE_AUX = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<PAMDataset")
LIKE_WORLD = re.compile(rb"\s*[-+]?\.?\d")
"""How what counts begins, where servers may give something else in its place."""

ALPHA_CODES = (1, 2)
"""Of the tag ExtraSamples."""


@dataclass(frozen=True)
class BandWords:
    """What is said of one band; None and "" where nothing is."""

    name: str = ""
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True)
class Beside:
    """What lies beside a raster."""

    files: tuple[str, ...] = ()
    """Names of those that count."""
    transform: Affine | None = None
    """Counts before the raster's own."""
    crs: str = ""
    """The same, a code or WKT."""
    bands: dict[int, BandWords] = field(default_factory=dict)
    """By number, the first 0; counts before the raster's own as well."""
    says_nodata: bool = False
    nodata: Nodata = None
    """The value that stands for nothing in all bands, or in each sample of a pixel, where `says_nodata`."""
    world: Affine | None = None
    """Counts where nothing else says it."""
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with what is taken from the files; "" where nothing is."""
        told = (self.transform, self.crs, sorted((k, repr(words)) for k, words in self.bands.items()), self.says_nodata, self.world)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest() if self.files else ""

    def known(self, own: Sequence[Band]) -> tuple[Band, ...]:
        """Bands by what they say themselves, and by what is said of them here."""
        return tuple(_known(band, self.bands.get(number)) for number, band in enumerate(own))

    def facts(self) -> dict[str, str]:
        """Free facts for `inspect`."""
        names = [posixpath.basename(file.partition("?")[0] if is_url(file) else file) for file in self.files]
        return {"geo.beside": ", ".join(names)} if names else {}

    @property
    def unread_nodata(self) -> tuple[str, ...]:
        """What is told where it says what stands for nothing in a picture."""
        said = any(words.nodata is not None for words in self.bands.values())
        return (f"{self.files[0]} says what stands for nothing, which is not read of a picture; make it a GeoTIFF.",) if said else ()

    def place(self, page: Any = None) -> GeoReference | None:
        """Where a raster lies, be it the image of a tifffile page, by all that says so."""
        transform = self.transform or self.world
        own = read_geo(page, self.transform, self.world) if page is not None else None if transform is None else GeoReference(transform)
        return geo_from_crs(self.crs, own.transform) if own is not None and self.crs else own


NOTHING = Beside()


def _known(band: Band, words: BandWords | None) -> Band:
    if words is None:
        return band
    scale = band.scale if words.scale is None else words.scale or 1.0
    return replace(band, name=words.name or band.name, scale=scale, offset=band.offset if words.offset is None else words.offset)


def read_beside(address: str, page: Any = None, *, placed: bool = False) -> Beside:
    """What lies beside a file, of a tifffile page or without tags of its own; `placed` where those place it.

    What cannot be read is left out and told: GDAL does the same, in silence. Beside an object at most two others are asked for, and what comes in the
    place of what is not there is left out in silence. Raises OutageError.
    """
    found = _read_aux(address)
    found = found if page is None else _with_nodata(found, page)
    if found.transform is not None or placed or (page is not None and has_place(page)):
        return found
    return _with_world(found, address)


def _look(address: str, path: str, limit: int, like: re.Pattern[bytes]) -> tuple[str, bytes | None] | None:
    """What lies at a path beside a file: how it is called, and its bytes, None where they cannot be read. None where nothing is."""
    if not is_url(address):
        if not os.path.isfile(path):  # noqa: PTH113  # addresses are strings
            return None
        try:
            return path, read_small_file(path, "", "", limit)
        except ConfigError:
            return path, None
    data = read_small_object(path, limit)
    return (without_credentials(path), data) if data is not None and like.match(data) else None


def _with_nodata(found: Beside, page: Any) -> Beside:
    """With what is said of nodata in bands that are no alpha."""
    if not found.bands:
        return found
    extra, kind, own = list(page.extrasamples), np.dtype(page.dtype or np.uint8), read_nodata(page)
    count = int(page.samplesperpixel)
    values = [number for number in range(count) if number < count - len(extra) or int(extra[number - count]) not in ALPHA_CODES]
    told = [words.nodata if (words := found.bands.get(number)) is not None else None for number in values]
    if all(value is None for value in told):
        return found
    said = [own if value is None else value if sample_of(value, kind) is not None else None for value in told]
    nodata = nodata_of(said)
    if isinstance(nodata, tuple):
        of_values = dict(zip(values, said, strict=True))
        nodata = tuple(of_values.get(number) for number in range(count))
    return replace(found, says_nodata=True, nodata=nodata)


def _with_world(found: Beside, address: str) -> Beside:
    looked_at = (_look(address, path, LARGEST_WORLD, LIKE_WORLD) for path in _world_paths(address))
    there = next((each for each in looked_at if each is not None), None)
    if there is None:
        return found
    path, data = there
    try:
        transform = _world(data or b"")
    except ValueError:
        words = f"{path} is no world file of six numbers, a line each; it is not read."
        return replace(found, warnings=(*found.warnings, words))
    return replace(found, world=transform, files=(*found.files, path))


def _world_paths(address: str) -> list[str]:
    """What the world file of a raster may be called: a.tfw, a.tifw or a.wld of a.tif, in small letters or large; of an object the first of these, which is what programs write."""
    stem, dot, suffix = (path_of(address) if is_url(address) else address).rpartition(".")
    if not dot or not suffix or "/" in suffix:
        return []
    suffix = suffix.lower()
    endings = dict.fromkeys((f"{suffix[0]}{suffix[-1]}w", f"{suffix}w", "wld"))
    names = [f"{stem}.{ending}" for each in endings for ending in (each, each.upper())]
    return [url_with_path(address, names[0])] if is_url(address) else names


def _world(data: bytes) -> Affine:
    text = data.decode("ascii", "strict")
    lines = [line.strip().replace(",", ".") for line in text.splitlines() if line.strip()]
    a, d, b, e, x, y = (float(line) for line in lines[:6])
    if not all(map(math.isfinite, (a, b, d, e, x, y))) or a * e - b * d == 0:
        raise ValueError("its pixels have no area")
    return a, b, x - (a + b) / 2, d, e, y - (d + e) / 2


def _read_aux(address: str) -> Beside:
    there = _look(address, beside_url(address, AUX) if is_url(address) else f"{address}{AUX}", LARGEST_AUX, LIKE_AUX)
    if there is None:
        return NOTHING
    path, data = there[0], there[1] or b""
    try:
        typed = re.search(rb"<!\s*(DOCTYPE|ENTITY)", data, re.IGNORECASE)
        root = ET.fromstring(b"" if typed else data)  # noqa: S314  # without a document type there are no entities
    except (ET.ParseError, ValueError, LookupError):
        return Beside(warnings=(f"{path} is no XML of GDAL's; it is not read.",))
    transform = _transform(root.findtext("GeoTransform"))
    crs = crs_words(root.findtext("SRS") or "")
    bands = {
        int(number) - 1: words
        for band in root.findall("PAMRasterBand")
        if (number := band.get("band", "")).isdecimal() and (words := _words(band))
    }
    points = transform is None and root.find("GCPList") is not None
    lost = f"{path} has ground control points, which are not read; gdalwarp makes a GeoTIFF that states its place."
    taken = transform is not None or bool(crs) or bool(bands)
    return Beside((path,) if taken else (), transform, crs, bands, warnings=(lost,) if points else ())


def _transform(text: str | None) -> Affine | None:
    numbers = [_number(each) for each in (text or "").split(",")]
    if len(numbers) != 6 or any(value is None for value in numbers):
        return None
    c, a, b, f, d, e = (float(value or 0.0) for value in numbers)
    found = (a, b, c, d, e, f)
    return found if all(map(math.isfinite, found)) and a * e - b * d != 0 else None


def _words(band: ET.Element) -> BandWords | None:
    found = BandWords(
        (band.findtext("Description") or "").strip(), *(_number(band.findtext(name)) for name in ("NoDataValue", "Scale", "Offset"))
    )
    return None if found == BandWords() else found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
