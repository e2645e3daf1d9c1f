"""Embeddings as a cube on the map: Zarr 3 with the conventions `proj`, `spatial` and `geoemb`.

Sources: https://github.com/geo-embeddings/embeddings-zarr-convention (version 1), zarr-conventions/proj and /spatial.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import zarr

from tilestream.interop.geo.place import cells_of, chip_layout, ground_size, model_uri, source_uri
from tilestream.interop.omezarr import grid_bands, grid_shape
from tilestream.interop.target import Target, Written
from tilestream.store.slide import Slide

CONVENTION = {
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}

CHUNK = 16
"""Side of a chunk, cells: all dimensions of a place in few bytes."""

SHARD_BYTES = 64 * 1024**2
"""Bytes of a shard, where one chunk does not take more; and of the rows that are written at once."""


def write_geo_zarr(slide: Slide, target: Target) -> Written:
    """A group with `embeddings` (embedding, y, x), NaN where there is none, and `y` and `x`, the centres of cells, where the map is not turned.

    Memory bound: rows of the grid as high as a shard.

    Raises
    ------
    InputError
        Its image lies on no map, or its tiles on no grid.
    """
    cells, (rows, cols) = cells_of(slide), grid_shape(slide)
    dimensions, dtype = int(slide.vectors().shape[1]), np.dtype(slide.layout.dtype)
    side = CHUNK
    while side < max(rows, cols) and (side * 2) * max(cols, side * 2) * dimensions * dtype.itemsize <= SHARD_BYTES:
        side *= 2
    with target.writing() as path:
        about = cells.attributes((rows, cols))
        about["zarr_conventions"] = [*about["zarr_conventions"], CONVENTION]
        root = zarr.create_group(path, attributes={**about, **_geoemb(slide, str(dtype), dimensions, ground_size(cells))})
        array: Any = root.create_array(
            "embeddings", shape=(dimensions, rows, cols), chunks=(dimensions, CHUNK, CHUNK), shards=(dimensions, side, side), dtype=dtype, fill_value=np.nan,
            dimension_names=("embedding", "y", "x"), compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=5),
        )  # fmt: skip
        values = ((each.row[each.good], each.col[each.good], each.vectors[each.good].astype(dtype)) for each in slide.blocks())
        top = 0
        for band in grid_bands(slide, np.full(dimensions, np.nan, dtype), values, side):
            array[:, top : top + band.shape[1]] = band
            top += band.shape[1]
        a, b, c, d, e, f = cells.transform
        if b == 0 and d == 0:
            root.create_array("x", data=c + a * (np.arange(cols) + 0.5), dimension_names=("x",))
            root.create_array("y", data=f + e * (np.arange(rows) + 0.5), dimension_names=("y",))
    return Written.without_failed(slide)


def _geoemb(slide: Slide, dtype: str, dimensions: int, gsd: float | None) -> dict[str, Any]:
    """The attributes of the convention."""
    try:
        build = {"geoemb:build_version": f"tilestream {version('tilestream')}"}
    except PackageNotFoundError:
        build = {}
    return {
        "geoemb:type": "chip",
        "geoemb:dimensions": dimensions,
        "geoemb:model": model_uri(slide),
        "geoemb:source_data": [source_uri(slide)],
        "geoemb:data_type": dtype,
        "geoemb:chip_layout": chip_layout(slide),
        **({} if gsd is None else {"geoemb:gsd": gsd}),
        **build,
    }
