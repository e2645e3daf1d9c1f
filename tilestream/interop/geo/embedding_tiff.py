"""Embeddings as a Cloud Optimized GeoTIFF (extra `geo`): a pixel a tile, a band a dimension, int8 with a scale and an offset for each band.

Source: https://docs.ogc.org/is/21-026/21-026.html and GDAL's driver `COG`. A value is stored * scale + offset; -128 is no data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import load_needed
from tilestream.interop.geo.place import cells_of, map_of, model_uri, source_uri
from tilestream.interop.omezarr import grid_bands, grid_shape
from tilestream.interop.target import Target, Written
from tilestream.store.slide import Slide

NODATA, LARGEST = -128, 127
BAND_BYTES = 64 * 1024**2
"""Bytes of rows of the grid that are written at once, at least one block of 16."""

TILE_BYTES = 8 * 1024**2
"""Bytes of a tile of the file with all of its bands, where a tile of 16 px does not take more."""

Floats = NDArray[np.float64]


def write_embedding_tiff(slide: Slide, target: Target) -> Written:
    """Each band holds its values in 255 steps from the least to the greatest; pixels are centred on their tiles.

    Memory bound: a block of rows, and `BAND_BYTES`.

    Raises
    ------
    InputError
        Its image lies on no map, or its tiles on no grid.
    ConfigError
        rasterio is not installed.
    """
    rasterio, shutil = load_needed("--to cog", "geo", "rasterio", "rasterio.shutil")
    cells, (height, width) = cells_of(slide), grid_shape(slide)
    scale, offset = _steps(slide)
    dimensions = len(scale)
    high = max(16, BAND_BYTES // (dimensions * width) // 16 * 16)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": dimensions, "dtype": "int8", "nodata": NODATA, "blockysize": min(high, height),
        "interleave": "band", "BIGTIFF": "IF_SAFER", "transform": rasterio.Affine(*cells.transform), "crs": map_of(slide).rasterio_crs(),
    }  # fmt: skip
    with target.writing() as path, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a map without a CRS
        plain = Path(f"{path}.plain.tif")
        with rasterio.open(plain, "w", **profile) as file:
            file.scales, file.offsets = scale.tolist(), offset.tolist()
            file.update_tags(model=model_uri(slide), source_data=source_uri(slide), slide=slide.id)
            top = 0
            for band in grid_bands(slide, np.full(dimensions, NODATA, np.int8), _quantised(slide, scale, offset), high):
                file.write(band, window=rasterio.windows.Window(0, top, width, band.shape[1]))
                top += band.shape[1]
        side = 512
        while side > 16 and side * side * dimensions > TILE_BYTES:
            side //= 2
        shutil.copy(plain, path, driver="COG", compress="DEFLATE", overview_resampling="AVERAGE", blocksize=side, bigtiff="IF_SAFER")
        plain.unlink()
    return Written.without_failed(slide)


def _steps(slide: Slide) -> tuple[Floats, Floats]:
    """(d,) scale and offset of each band: its least value becomes -127, its greatest 127."""
    dimensions = int(slide.vectors().shape[1])
    least, most = np.full(dimensions, np.inf), np.full(dimensions, -np.inf)
    for rows in slide.blocks():
        if rows.good.any():
            values = rows.vectors[rows.good].astype(np.float64)
            least, most = np.minimum(least, values.min(axis=0)), np.maximum(most, values.max(axis=0))
    if not np.isfinite(least).all():  # no tile at all
        return np.ones(dimensions), np.zeros(dimensions)
    scale = (most - least) / (2 * LARGEST)
    return np.where(scale > 0, scale, 1.0), (most + least) / 2


def _quantised(slide: Slide, scale: Floats, offset: Floats) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
    for rows in slide.blocks():
        good = rows.good
        steps = np.rint((rows.vectors[good] - offset) / scale)
        yield rows.row[good], rows.col[good], np.clip(steps, -LARGEST, LARGEST).astype(np.int8)
