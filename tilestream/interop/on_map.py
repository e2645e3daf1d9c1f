"""Where tiles lie on a map, for slides that say where they are: corners in the CRS of the image, or in degrees of WGS 84."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, load_needed
from tilestream.store.slide import Slide

WGS84 = "EPSG:4326"

CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
"""x, y of the closed ring of a square of side 1."""

POLYGON = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))])
"""A square in well-known binary: byte order, kind of geometry, number of rings, number of points, and the points, the last one the first."""


@dataclass(frozen=True)
class MapPlaces:
    """From level-0 pixels to a map."""

    transform: tuple[float, ...]
    """a, b, c, d, e, f: x = a col + b row + c, y = d col + e row + f."""
    crs: str
    """A code or WKT; "" where the file does not say."""
    slide: str = ""
    """Its id, for messages."""

    @classmethod
    def of(cls, slide: Slide) -> MapPlaces | None:
        """Of a slide's store; None where its image says nothing of a map."""
        told = slide.source.get("geo")
        return None if told is None else cls(tuple(told["transform"]), told["crs"], slide.id)

    def scaled(self, step: float) -> MapPlaces:
        """The same for pixels of `step` level-0 px a side."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a * step, b * step, c, d * step, e * step, f))

    def world(self, l0_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) x, y in the CRS of the image from (..., 2) x, y in level-0 px."""
        a, b, c, d, e, f = self.transform
        x, y = l0_xy[..., 0], l0_xy[..., 1]
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)

    def degrees(self, l0_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) longitude, latitude in WGS 84.

        Raises
        ------
        InputError
            The map's CRS cannot be turned into degrees, or not there.
        ConfigError
            Pyproj is not installed.
        """
        pyproj = load_pyproj("geojson")
        there = self.world(l0_xy)
        try:
            turn = pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(self.crs), WGS84, always_xy=True)
            found = np.stack(turn.transform(there[..., 0], there[..., 1]), axis=-1)
        except pyproj.exceptions.CRSError as error:
            raise self._unknown() from error
        except pyproj.exceptions.ProjError as error:
            raise self._no_degrees(str(error)) from error
        if not np.isfinite(found).all():
            x, y = there[~np.isfinite(found).all(axis=-1)][0]
            raise self._no_degrees(f"not at x = {x:g}, y = {y:g}")
        return found

    def projjson(self) -> dict[str, Any] | None:
        """The CRS as GeoParquet wants it; None where the file does not say. Raises InputError, or ConfigError where pyproj is not installed."""
        if not self.crs:
            return None
        pyproj = load_pyproj("parquet")
        try:
            described: dict[str, Any] = pyproj.CRS.from_user_input(self.crs).to_json_dict()
        except pyproj.exceptions.CRSError as error:
            raise self._unknown() from error
        return described

    def rasterio_crs(self) -> Any:
        """The CRS as rasterio takes it; None where the file does not say. Raises InputError, or ConfigError where rasterio is not installed."""
        if not self.crs:
            return None
        crs, errors = load_needed("--to cog", "geo", "rasterio.crs", "rasterio.errors")
        try:
            return crs.CRS.from_user_input(self.crs)
        except errors.CRSError as error:
            raise self._unknown() from error

    def _told_crs(self) -> str:
        return self.crs if len(self.crs) < 80 else f"{self.crs[:80]}..."  # a WKT has a thousand

    def _unknown(self) -> InputError:
        return InputError(
            f"{self.slide}: its raster says that it lies on {self._told_crs()}, which PROJ does not know. "
            "Set the CRS in the raster (gdal_edit -a_srs) and run it anew, or export it as csv, trident-h5 or ome-zarr."
        )

    def _no_degrees(self, why: str) -> InputError:
        return InputError(
            f"{self.slide}: places on its map, {self._told_crs()}, cannot be turned into degrees of WGS 84: {why.rstrip(chr(46))}. "
            "Export it as geoparquet or cog, which keep the units of the map, or set its CRS in the raster (gdal_edit -a_srs) and run it anew."
        )


def squares_of(x: NDArray[np.int64], y: NDArray[np.int64], side: float) -> NDArray[np.float64]:
    """(n, 5, 2) closed rings of squares of `side` whose top-left corners are x, y (n,)."""
    return np.stack([x, y], axis=1)[:, None].astype(np.float64) + np.asarray(CORNERS, np.float64) * side


def polygons_of(rings: NDArray[np.float64]) -> list[bytes]:
    """Well-known binary of m closed rings (m, 5, 2) of x, y."""
    polygons = np.zeros(len(rings), POLYGON)
    polygons["order"], polygons["kind"], polygons["rings"], polygons["points"] = 1, 3, 1, 5
    polygons["xy"] = rings
    raw = polygons.tobytes()
    return [raw[k : k + POLYGON.itemsize] for k in range(0, len(raw), POLYGON.itemsize)]


def load_pyproj(name: str) -> Any:
    """The module pyproj, which the format `name` needs for images on a map. Raises ConfigError where it is not installed."""
    return load_needed(f"--to {name} of an image on a map", "geo", "pyproj", otherwise=", or use --to csv")[0]
