"""A slide as a SpatialData container, which `spatialdata.read_zarr` opens: the table of tiles, the tiles as squares and as labels, tissue, thumbnail.

Sources: https://spatialdata.scverse.org/en/stable/design_doc.html and https://github.com/scverse/spatialdata (container 0.2, rasters 0.3,
shapes 0.3, tables 0.2). The one coordinate system, `global`, is level-0 px.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from tilestream import __version__
from tilestream.interop.geojson import mask_downsample
from tilestream.interop.multiscale import CHUNK
from tilestream.interop.omezarr import grid_bands, grid_shape
from tilestream.interop.shapes import write_shapes
from tilestream.interop.target import Target, Written
from tilestream.store.anndata_tables import ARRAY, CATEGORICAL, DICT, write_plain, write_scalar, write_strings
from tilestream.store.folder import Folder
from tilestream.store.heads.ome import VERSION
from tilestream.store.layout import TILES
from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL, TISSUE

CONTAINER, RASTER, TABLE = "0.2", "0.3", "0.2"
"""Versions of the parts of the format."""

REGION, REGION_KEY, INSTANCE_KEY = "tile_squares", "region", "tile_id"
GRID, MASK = "tile_grid", "tissue"
"""No two elements may share a name, and the table is `tiles`."""

LABEL = {"image-label": {"version": VERSION}}


def write_spatialdata(slide: Slide, target: Target) -> Written:
    """`tables/tiles`, the slide's own table with the columns that tie its rows to `shapes/tile_squares`; labels; `images/thumbnail`.

    `shapes/tile_squares` are the tiles' squares, whose index is `tile_id`, the tile's row in the table + 1; there are none in a slide without
    tiles. `labels/tile_grid` (rows, cols) uint32 has one pixel a tile, whose value is its `tile_id`; `labels/tissue` uint8 is 1 where the
    mask of the thumbnail's size found tissue. Tiles on no regular grid are squares alone. Failed tiles keep their rows, with NaN.

    Memory bound: the largest object of the store (one shard), and bands of 256 rows of the tile grid.

    Raises
    ------
    ConfigError
        pyarrow is not installed.
    """
    with target.writing() as path:
        root = container(path)
        root.create_group("tables")
        copy_objects(slide.folder, Folder(str(path)), TILES)
        _annotate(zarr.open_group(path / TILES, mode="r+"), slide.layout.tiles)
        if slide.layout.tiles:
            write_shapes(root.create_group("shapes"), path / "shapes", REGION, INSTANCE_KEY, slide)
        mask, thumbnail = (None if raw is None else Image.open(io.BytesIO(raw)) for raw in map(slide.folder.get, (TISSUE, THUMBNAIL)))
        names = [*([GRID] if slide.gridded else []), *([MASK] if mask else [])]
        if names:
            labels = root.create_group("labels", attributes={"ome": {"labels": names}})
            if slide.gridded:
                _write_grid(labels, slide)
            if mask is not None:
                _write_image(labels, MASK, (np.asarray(mask) > 0).astype(np.uint8), slide, LABEL)
        if thumbnail is not None:
            pixels = np.moveaxis(np.asarray(thumbnail.convert("RGB")), 2, 0)
            _write_image(
                root.create_group("images"), "thumbnail", pixels, slide, {"omero": {"channels": [{"label": name} for name in "rgb"]}}
            )
    notes = () if slide.gridded else ("tiles on no regular grid: without labels of them",)
    return Written(slide.layout.tiles, notes)


def container(path: Path) -> zarr.Group:
    """A new container without elements."""
    about = {"version": CONTAINER, "spatialdata_software_version": f"tilestream {__version__}"}
    return zarr.create_group(path, attributes={"spatialdata_attrs": about})


def _write_grid(labels: zarr.Group, slide: Slide) -> None:
    """The tiles of a regular grid, one pixel each."""
    grid = slide.grid()
    array = _raster(labels, GRID, grid_shape(slide), np.uint32, grid.l0_step, grid.l0_cells, LABEL)
    for k, band in enumerate(_number_bands(slide)):
        array[k * CHUNK : k * CHUNK + band.shape[0]] = band


def _write_image(group: zarr.Group, name: str, pixels: NDArray[np.uint8], slide: Slide, more: dict[str, Any]) -> None:
    """A picture of the whole slide."""
    _raster(group, name, pixels.shape, np.uint8, mask_downsample(slide, pixels.shape[-2:]), (0.0, 0.0), more)[:] = pixels


def copy_objects(source: Folder, target: Folder, prefix: str, to: str | None = None) -> None:
    """Copy every object below `prefix`, byte for byte, one at a time; `to` takes its place, if it is given."""
    for key in source.names(prefix):
        data = source.get(key)
        assert data is not None, "listed a moment ago"
        target.put(key if to is None else f"{to}/{key[len(prefix) :].lstrip('/')}".lstrip("/"), data)


def _annotate(table: zarr.Group, tiles: int) -> None:
    """Tie row k of a table to square k + 1 of the region; a table without rows is tied to nothing, as SpatialData demands."""
    keys = {"region": REGION, "region_key": REGION_KEY, "instance_key": INSTANCE_KEY}
    tied: dict[str, Any] = keys if tiles else dict.fromkeys(keys)
    table.attrs.update({"spatialdata-encoding-type": "ngff:regions_table", **tied, "version": TABLE})
    obs = table.require_group("obs")
    region = obs.create_group(REGION_KEY, attributes=dict(CATEGORICAL))
    region.create_array("codes", data=np.zeros(tiles, np.int8), attributes=ARRAY)
    write_strings(region, "categories", [REGION])
    write_plain(obs, INSTANCE_KEY, np.arange(1, tiles + 1))
    order: Any = obs.attrs["column-order"]
    obs.attrs["column-order"] = [*order, REGION_KEY, INSTANCE_KEY]
    if not tiles:
        return
    stated = table.require_group("uns").create_group("spatialdata_attrs", attributes=DICT)
    for name, value in keys.items():
        write_scalar(stated, name, value)


def _number_bands(slide: Slide) -> Iterator[NDArray[Any]]:
    """(CHUNK, cols) uint32: the `tile_id` of each tile of the grid, 0 where there is none."""

    def values() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
        number = 1
        for rows in slide.blocks():
            yield rows.row, rows.col, np.arange(number, number + len(rows.row), dtype=np.uint32)[:, None]
            number += len(rows.row)

    return (band[0] for band in grid_bands(slide, np.zeros(1, np.uint32), values()))


def _raster(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, step: float, corner: tuple[float, ...], more: dict[str, Any]
) -> zarr.Array[Any]:
    """An image or labels of one level, to be filled: `step` level-0 px a pixel, pixel (0, 0) beginning at y, x `corner`."""
    names = "cyx"[-len(shape) :]
    raster = group.create_group(name, attributes=raster_about(name, names, step, corner, more))
    chunks = (*shape[:-2], min(CHUNK, shape[-2]), min(CHUNK, shape[-1]))
    return raster.create_array("0", shape=shape, dtype=dtype, chunks=chunks, dimension_names=list(names))


def raster_about(name: str, names: str, step: float, corner: tuple[float, ...], more: dict[str, Any], levels: int = 1) -> dict[str, Any]:
    """The attributes of an image or labels: `step` level-0 px a pixel of the finest level, pixel (0, 0) beginning at y, x `corner`; each level half of the one before."""
    axes = [{"name": axis, "type": "channel" if axis == "c" else "space"} for axis in names]
    spaces = {
        "input": {"name": names, "axes": [_with_unit(axis) for axis in axes]},
        "output": {"name": "global", "axes": [_with_unit(axis) for axis in axes]},
    }
    scale = [step if axis in "yx" else 1.0 for axis in names]
    translation = [*([0.0] * (len(names) - 2)), *corner]
    steps = [{"type": "scale", "scale": scale, **spaces}, {"type": "translation", "translation": translation, **spaces}]
    multiscale = {
        "name": name,
        "axes": axes,
        "datasets": [_level(k, names) for k in range(levels)],
        "coordinateTransformations": [{"type": "sequence", "transformations": steps, **spaces}],
    }
    ome = {"version": "0.5-dev-spatialdata", "multiscales": [multiscale], **more}
    return {"ome": ome, "spatialdata_attrs": {"version": RASTER}}


def _level(number: int, names: str) -> dict[str, Any]:
    scale = [2.0**number if axis in "yx" else 1.0 for axis in names]
    return {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]}


def _with_unit(axis: dict[str, str]) -> dict[str, str]:
    """The axis as SpatialData writes it in a coordinate system: lengths in a unit of no name."""
    return axis if axis["type"] == "channel" else {**axis, "unit": "unit"}
