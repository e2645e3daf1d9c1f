"""Where on a map an image lies: CRS, affine and nodata, from the tags of a GeoTIFF; rasterio is asked only for what those leave to a registry.

Sources: OGC GeoTIFF 1.1 (19-008r4): ModelPixelScale, ModelTiepoint, ModelTransformation, GTRasterType, linear units; GDAL_NODATA is GDAL's.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tifffile

from tilestream.sources.resolution import SQUARE_TOLERANCE, UNKNOWN, Resolution

Affine = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a col + b row + c, y = d col + e row + f."""

IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

PROJECTED, GEOGRAPHIC = 1, 2
"""GTModelType."""

PIXEL_IS_POINT = 2
"""GTRasterType: tie points lie at the centres of pixels, not at their corners."""

USER_DEFINED = 32767
"""The code of what no registry has."""

PLACE_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""ModelPixelScale, ModelTiepoint, ModelTransformation, and the three tags of GeoKeys."""

RPC = 50844
"""The tag RPCCoefficient."""

LINEAR_METRES = {9001: 1.0, 9002: 0.3048, 9003: 1200 / 3937}
"""Metres per linear unit, by EPSG code: metre, foot, US survey foot."""

METRIC_CODES = (range(32601, 32661), range(32701, 32761), range(25828, 25839), range(3857, 3858), range(3034, 3036))
"""Projected CRS that are in metres, for files that do not repeat it: UTM on WGS 84 and ETRS89, Web Mercator, LCC and LAEA of Europe."""

CONVENTIONS = {
    name: {
        "name": name,
        "uuid": uuid,
        "description": words,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
    }
    for name, uuid, words in (
        ("proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information for geospatial data"),
        ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    )
}
"""How Zarr groups say that their attributes follow a convention (zarr-conventions on GitHub)."""


@dataclass(frozen=True)
class GeoReference:
    """Where an image lies."""

    transform: Affine
    """a, b, c, d, e, f: the corner of pixel (row, col) lies at x = a col + b row + c, y = d col + e row + f, in units of the CRS."""
    code: str = ""
    """`EPSG:32633`, or "" where the CRS has no code."""
    wkt: str = ""
    """WKT2 of a CRS without a code, where rasterio could tell."""
    name: str = ""
    """What the file calls its CRS."""
    metres: float | None = None
    """Metres per unit of the CRS; None where its units are degrees, or unknown."""

    @property
    def crs(self) -> str:
        """The CRS as programs take it: a code, else WKT, else ""."""
        return self.code or self.wkt

    @property
    def south_up(self) -> bool:
        """Whether rows run from south to north."""
        return self.transform[4] > 0

    def resolution(self) -> Resolution:
        """µm/px on the ground; unknown on a map in degrees, and where pixels are not square."""
        if self.metres is None:
            return UNKNOWN
        a, b, _, d, e, _ = self.transform
        x, y = (math.hypot(*sides) * self.metres * 1e6 for sides in ((a, d), (b, e)))
        if not (min(x, y) > 0 and math.isfinite(max(x, y))):
            return UNKNOWN
        if abs(x - y) > SQUARE_TOLERANCE * max(x, y):
            words = f"pixels are {y / 1e6:g} x {x / 1e6:g} m (y, x), not square; mpp is taken as unknown."
            return Resolution(None, "", (words,))
        return Resolution((x + y) / 2, "the GeoTIFF tags")

    def moved(self, l0_y: float, l0_x: float, step: float) -> GeoReference:
        """The same map for cells of `step` pixels a side, of which the first begins at pixel (l0_y, l0_x)."""
        a, b, c, d, e, f = self.transform
        placed = (a * step, b * step, a * l0_x + b * l0_y + c, d * step, e * step, d * l0_x + e * l0_y + f)
        return replace(self, transform=placed)

    def attributes(self, shape: tuple[int, int], dimensions: tuple[str, str] = ("y", "x")) -> dict[str, Any]:
        """Attributes of a Zarr group by the conventions `proj` and `spatial`, for `shape` (rows, columns) pixels."""
        a, b, c, d, e, f = self.transform
        corners = [(a * col + b * row + c, d * col + e * row + f) for row in (0, shape[0]) for col in (0, shape[1])]
        xs, ys = zip(*corners, strict=True)
        crs = {"proj:code": self.code} if self.code else {"proj:wkt2": self.wkt} if self.wkt else {}
        return {
            "zarr_conventions": [CONVENTIONS[name] for name in (("proj", "spatial") if crs else ("spatial",))],
            **crs,
            "spatial:dimensions": list(dimensions),
            "spatial:transform": list(self.transform),
            "spatial:shape": list(shape),
            "spatial:bbox": [min(xs), min(ys), max(xs), max(ys)],
            "spatial:registration": "pixel",
        }

    def _orientation(self) -> str:
        a, b, _, d, e, _ = self.transform
        if abs(b) + abs(d) > 1e-6 * (abs(a) + abs(e)):
            return f"turned: rows run {math.degrees(math.atan2(d, a)):.4g}° from the x axis of the CRS"
        return "south-up: row 0 is the southern edge" if self.south_up else "north-up"

    def facts(self) -> dict[str, str]:
        """Free facts for `inspect`."""
        a, b, c, d, e, f = self.transform
        return {
            "geo.crs": self.code or self.name or ("without a code, known as WKT" if self.wkt else "unknown"),
            **({"geo.crs_name": self.name} if self.code and self.name else {}),
            "geo.transform": f"x = {a:.12g} col + {b:.12g} row + {c:.12g}, y = {d:.12g} col + {e:.12g} row + {f:.12g}",
            "geo.orientation": self._orientation(),
        }


def read_geo(page: Any, before: Affine | None = None, after: Affine | None = None) -> GeoReference | None:
    """Where the image of a tifffile page lies; None where its tags do not say, nor an affine that counts before or after theirs."""
    tags = (page.geotiff_tags or {}) if page.is_geotiff else _places_without_keys(page)
    transform = before or _transform(tags) or after
    if transform is None:
        return None
    kind = int(tags.get("GTModelTypeGeoKey", 0))
    key = {PROJECTED: "ProjectedCSTypeGeoKey", GEOGRAPHIC: "GeographicTypeGeoKey"}.get(kind, "")
    code = int(tags.get(key, 0))
    name = str(tags.get("GTCitationGeoKey") or tags.get("PCSCitationGeoKey") or tags.get("GeogCitationGeoKey") or "").strip(" |")
    name = "" if name.casefold() == "unknown" else name
    if code in (0, USER_DEFINED) and not page.is_geotiff:
        return None if transform == IDENTITY else GeoReference(transform)  # what programs write that have no place to write
    if code in (0, USER_DEFINED):
        return _asked_of_rasterio(page, GeoReference(transform, name=name))
    found = GeoReference(transform, f"EPSG:{code}", "", name)
    if kind != PROJECTED:
        return found
    stated, own = int(tags.get("ProjLinearUnitsGeoKey", 0)), metres_of(code)
    if stated and own is not None and not math.isclose(LINEAR_METRES.get(stated, 0.0), own):  # a unit of its own makes it another CRS
        return _asked_of_rasterio(page, replace(found, metres=LINEAR_METRES.get(stated)))
    return replace(found, metres=LINEAR_METRES.get(stated, own))


def has_place(page: Any) -> bool:
    """Whether a tifffile page's own tags place it on a map."""
    return _transform((page.geotiff_tags or {}) if page.is_geotiff else _places_without_keys(page)) is not None


def place_warnings(page: Any, *, known: bool = False) -> tuple[str, ...]:
    """What a tifffile page says of its place that is not read, or is not read as it stands; `known` where another file says it."""
    if known:
        return ()
    ties, scale = page.tags.valueof(33922, default=()), page.tags.valueof(33550)
    if scale and len(scale) > 1 and scale[1] < 0:
        words = f"the GeoTIFF tags say that pixels are {scale[1]:g} high, which is negative; row 0 is taken for the northern edge, as GDAL has it."
        return (f"{words} gdal_edit -a_ullr states where it lies.",)
    count = len(tuple(_flat(ties))) // 6
    if scale or page.tags.valueof(34264):
        return ()
    if RPC in page.tags and count == 0:
        return (
            "rational polynomial coefficients (RPC) say where it lies on a map, and they are not read: its place is unknown. gdalwarp makes a GeoTIFF that states it.",
        )
    if count < 2:
        return ()
    return (
        f"{count} ground control points say where it lies on a map, and they are not read: its place is unknown. gdalwarp makes a GeoTIFF that states it.",
    )


def read_nodata(page: Any) -> float | None:
    """The value that stands for "nothing here" (the tag GDAL_NODATA), or None."""
    text = str(page.tags.valueof(42113, default="")).strip(" \0")
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _transform(tags: dict[str, Any]) -> Affine | None:
    """As GDAL reads it where a file breaks the standard: of both ways to say it the scale counts, and rows run down the map whatever its sign."""
    half = 0.5 if int(tags.get("GTRasterTypeGeoKey", 1)) == PIXEL_IS_POINT else 0.0
    scale, tie, matrix = (tags.get(name) for name in ("ModelPixelScale", "ModelTiepoint", "ModelTransformation"))
    if scale is not None and tie is not None and all(float(side) for side in scale[:2]):
        col, row, _, x, y, _ = (float(value) for value in list(_flat(tie))[:6])
        a, b, d, e = float(scale[0]), 0.0, 0.0, -abs(float(scale[1]))
        c, f = x - a * col, y - e * row
    elif matrix is not None:
        rows = [[float(value) for value in row] for row in matrix]
        a, b, c, d, e, f = rows[0][0], rows[0][1], rows[0][3], rows[1][0], rows[1][1], rows[1][3]
    else:
        return None
    found = (a, b, c - half * (a + b), d, e, f - half * (d + e))
    return found if all(map(math.isfinite, found)) and a * e - b * d != 0 else None


def _places_without_keys(page: Any) -> dict[str, Any]:
    """The tags that place an image on a map that nothing is said of."""
    scale, tie, matrix = (page.tags.valueof(code) for code in PLACE_TAGS[:3])
    rows = None if matrix is None or len(matrix) != 16 else [matrix[k : k + 4] for k in range(0, 16, 4)]
    found = {"ModelPixelScale": scale, "ModelTiepoint": tie, "ModelTransformation": rows}
    return {name: value for name, value in found.items() if value}


def _flat(values: Any) -> Any:
    for value in values:
        if isinstance(value, tuple | list):
            yield from value
        else:
            yield value


def metres_of(code: int) -> float | None:
    """Metres per unit of a projected CRS: as its code is known, else as pyproj says."""
    if any(code in codes for codes in METRIC_CODES):
        return 1.0
    try:
        import pyproj
    except ModuleNotFoundError:
        return None
    try:
        return float(pyproj.CRS.from_epsg(code).axis_info[0].unit_conversion_factor)
    except (pyproj.exceptions.CRSError, IndexError):
        return None


def crs_words(text: str) -> str:
    """The code at the end of a WKT, else the text itself."""
    code = re.search(r'(?:AUTHORITY|ID)\["EPSG",\s*"?(\d+)"?\]\]\s*$', text.strip())
    return f"EPSG:{code[1]}" if code else text.strip()


def geo_from_crs(crs: str, transform: Affine) -> GeoReference:
    """A map by a code or WKT, as rasterio or GDAL would take it; without rasterio only the text is kept."""
    plain = GeoReference(transform, crs) if crs.startswith("EPSG:") else GeoReference(transform, "", crs)
    try:
        from rasterio.crs import CRS
        from rasterio.errors import RasterioError
    except ModuleNotFoundError:
        return plain
    try:
        return _of_crs(CRS.from_user_input(crs), transform, "")
    except RasterioError:
        return GeoReference(transform, name=crs)


def _asked_of_rasterio(page: Any, otherwise: GeoReference) -> GeoReference:
    """What the file has the parameters of, but no code. Rasterio gets the tags alone, and so nothing to open: the file may lie in a store."""
    try:
        from rasterio.errors import RasterioError
        from rasterio.io import MemoryFile
    except ModuleNotFoundError:
        return otherwise
    try:
        with MemoryFile(_places_alone(page)) as file, file.open() as opened:
            return _of_crs(opened.crs, otherwise.transform, otherwise.name) if opened.crs else otherwise
    except RasterioError:
        return otherwise


def _of_crs(crs: Any, transform: Affine, name: str) -> GeoReference:
    code = crs.to_epsg()
    metres = float(crs.linear_units_factor[1]) if crs.is_projected else None
    return GeoReference(transform, f"EPSG:{code}" if code else "", "" if code else crs.to_wkt(version="WKT2_2019"), name, metres)


def _places_alone(page: Any) -> bytes:
    """A TIFF of one pixel that lies on the same map."""
    tags = [page.tags[code] for code in PLACE_TAGS if code in page.tags]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.zeros((1, 1), np.uint8),
        metadata=None,
        extratags=[(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags],
    )
    return buffer.getvalue()
