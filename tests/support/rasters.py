"""Rasters cut from one picture, and what rasterio makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

from tests.support.images import make_image

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)
SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 4_900_000)
TURNED = Affine(8, 6, 500_000, 6, -8, 5_000_000)


def write_raster(path: Path, samples: NDArray[Any], transform: Affine = NORTH_UP, crs: Any = "EPSG:32633", **options: Any) -> Path:
    """(height, width, bands) samples as a GeoTIFF, in tiles of 64 px unless `options` say otherwise."""
    height, width, bands = samples.shape
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": bands,
        "dtype": samples.dtype,
        "crs": crs,
        "transform": transform,
    }
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64} | (
        {"photometric": "RGB"} if bands >= 3 and samples.dtype == np.uint8 else {}
    )
    with rasterio.open(path, "w", **{**profile, **tiles, **options}) as file:
        file.write(np.moveaxis(samples, -1, 0))
    return path


def cut(
    picture: NDArray[Any], boxes: dict[str, tuple[int, int, int, int]], folder: Path, transform: Affine = NORTH_UP, **options: Any
) -> list[Path]:
    """A file for each named y0, x0, y1, x1 of a picture, in its place on the map."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_raster(folder / f"{name}.tif", picture[y0:y1, x0:x1], transform @ Affine.translation(x0, y0), **options)
        for name, (y0, x0, y1, x1) in boxes.items()
    ]


PICTURE = make_image(300, 420)
QUARTERS = {"a": (0, 0, 170, 230), "b": (0, 230, 170, 420), "c": (170, 0, 300, 230), "d": (170, 230, 300, 420)}
"""Side by side, on no common grid of file tiles."""
OVERLAPPING = {"a": (0, 0, 200, 250), "b": (0, 200, 200, 420), "c": (150, 0, 300, 250), "d": (150, 200, 300, 420)}
ALIGNED = {"a": (0, 0, 192, 256), "b": (0, 256, 192, 420), "c": (192, 0, 300, 256), "d": (192, 256, 300, 420)}
HOLED = {"a": (0, 0, 100, 150), "d": (170, 230, 300, 420)}


def merged(paths: list[Path], path: Path, **options: Any) -> Path:
    """One file of several, by rasterio."""
    from rasterio.merge import merge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # rasterio's own
        merge([str(each) for each in paths], dst_path=path, **options)
    return path
