"""STAC items as a mosaic: one item, or a FeatureCollection or list of them, whose assets are GeoTIFFs on a disk, in a bucket or on a server.

Source: STAC 1.0 and 1.1, item and its extensions eo and raster. An item with one raster has its bands; of several, each is one band that is
called by the asset's key, or by its band's common name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from tilestream.config.bands.band import Band
from tilestream.config.local_files import read_small_file
from tilestream.config.urls.objects import is_url
from tilestream.errors import ConfigError, InputError
from tilestream.sources.bands import Nodata, nodata_of
from tilestream.sources.mosaic.parts import Listed, Part

WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""What STAC writes for values that JSON has no numbers for."""

LARGEST_LIST = 64 * 1024**2
"""Bytes: some ten thousand items."""

NO_DATA_ROLES = frozenset({"thumbnail", "overview", "metadata", "visual", "snow-ice", "cloud", "water-mask", "saturation"})
"""Roles of assets that are no data of their own."""


def read_stac(path: str) -> Listed:
    """What a list of STAC items says. Raises InputError."""
    try:
        data = json.loads(read_small_file(path, "", "Give STAC items as JSON.", LARGEST_LIST))
    except ConfigError as error:
        raise InputError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {error}. Give a FeatureCollection of STAC items.") from error
    items = data.get("features", [data]) if isinstance(data, Mapping) else data
    if (
        not isinstance(items, list)
        or not items
        or not all(isinstance(item, Mapping) and isinstance(item.get("assets"), Mapping) for item in items)
    ):
        raise InputError(f"{path}: holds no STAC items, each with assets. Give a FeatureCollection of items.")
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120  # addresses are strings
    rasters = [_rasters(item, path) for item in items]
    order = "the first item of the list on top"
    pairs = list(zip(items, rasters, strict=True))
    if all(len(found) == 1 for found in rasters):
        parts = tuple(Part(_place(asset, folder, path), stated=_nodata(item, asset)) for item, found in pairs for asset in found.values())
        return Listed("STAC items", parts, order)
    keys = list(dict.fromkeys(key for found in rasters for key in found))
    made = [
        Part(_place(asset, folder, path), tuple(0 if each == key else None for each in keys), stated=_nodata(item, asset))
        for item, found in pairs
        for key, asset in found.items()
    ]
    assets = {key: asset for found in reversed(rasters) for key, asset in found.items()}
    return Listed("STAC items", tuple(made), order, bands=tuple(_band(key, assets[key]) for key in keys))


def _rasters(item: Mapping[str, Any], path: str) -> dict[str, Mapping[str, Any]]:
    """The assets of an item that are rasters, by key; of bands, where there are such of one."""
    found = {
        str(key): asset
        for key, asset in item["assets"].items()
        if isinstance(asset, Mapping) and _is_raster(asset) and not NO_DATA_ROLES.intersection(map(str, _listed(asset, "roles")))
    }
    if not found:
        raise InputError(f"{path}: the item {item.get('id')!r} has no asset that is a GeoTIFF. Name items with data in image/tiff.")
    single = {key: asset for key, asset in found.items() if len(_bands(asset)) <= 1}
    return single if len(found) > 1 and single else found


def _is_raster(asset: Mapping[str, Any]) -> bool:
    name = str(asset.get("href", "")).partition("?")[0].partition("#")[0].lower()
    return str(asset.get("type", "")).startswith("image/tiff") or name.endswith((".tif", ".tiff"))


def _bands(asset: Mapping[str, Any]) -> list[Any]:
    return _listed(asset, "bands") or _listed(asset, "eo:bands")


def _listed(asset: Mapping[str, Any], key: str) -> list[Any]:
    """What an asset lists under a key; nothing where that is no list."""
    found = asset.get(key)
    return found if isinstance(found, list) else []


def _band(key: str, asset: Mapping[str, Any]) -> Band:
    """What an asset says of its one band: extensions eo and raster, in the words of STAC 1.0 and 1.1."""
    raster = next((each for each in _listed(asset, "raster:bands") if isinstance(each, Mapping)), {})
    said = {**raster, **next((each for each in _bands(asset) if isinstance(each, Mapping)), {})}
    light, scale, offset = (
        next((float(said[name]) for name in names if isinstance(said.get(name), int | float)), None)
        for names in (("eo:center_wavelength", "center_wavelength"), ("raster:scale", "scale"), ("raster:offset", "offset"))
    )
    common = str(said.get("eo:common_name") or said.get("common_name") or said.get("name") or "")
    return Band(key, common, light, scale or 1.0, offset or 0.0)


def _nodata(item: Mapping[str, Any], asset: Mapping[str, Any]) -> Nodata:
    """What an asset says that stands for nothing in its bands: of each, else of all of them, else as its item says of all assets."""
    properties = item.get("properties")
    for_all = [each.get("nodata") for each in (asset, properties) if isinstance(each, Mapping)]
    listed = [_listed(asset, key) for key in ("bands", "raster:bands")]
    of_bands = [[each[k] for each in listed if k < len(each) and isinstance(each[k], Mapping)] for k in range(max(map(len, listed)))]
    said = [[*(each.get("nodata") for each in words), *for_all] for words in of_bands or [[]]]
    return nodata_of([next((value for each in values if (value := _value(each)) is not None), None) for values in said])


def _value(said: Any) -> float | None:
    """A value of samples, which JSON writes as a number or as one of three words; None of anything else."""
    if isinstance(said, str):
        return WORDS.get(said.casefold())
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None


def _place(asset: Mapping[str, Any], folder: str, path: str) -> str:
    href = asset.get("href")
    if not isinstance(href, str) or not href:
        raise InputError(
            f"{path}: the href of an asset is {href!r}, and not where its file lies. Give each asset the path or URL of its file."
        )
    if href.startswith("file://"):
        return url2pathname(urlsplit(href).path)
    if is_url(href):
        return href
    if "://" in href or href.startswith("/vsi"):
        raise InputError(f"{path}: an asset lies at {href}, where nothing is read. Copy it, and give its path as href.")
    place = os.path.normpath(os.path.join(folder, href))  # noqa: PTH118
    if os.path.exists(place):  # noqa: PTH110
        return place
    bare = href.partition("?")[0].partition("#")[0]  # an href is a URI, and what signs it is no part of a file's name
    return os.path.normpath(os.path.join(folder, unquote(bare)))  # noqa: PTH118
