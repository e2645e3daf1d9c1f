"""The embeddings of a slide as an OME-Zarr image of one pixel a tile, with the tissue as labels.

Source: https://ngff.openmicroscopy.org/0.5/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.interop.geojson import COMPONENTS
from tilestream.interop.multiscale import CHUNK, halve_largest, halve_means, write_pyramid
from tilestream.interop.target import Target, Written
from tilestream.models.pca import Components, principal_components
from tilestream.store.heads.ome import VERSION, Place
from tilestream.store.slide import Slide

COLOURS = ("FF0000", "00FF00", "0000FF")
ATTENTION_COLOUR = "FFFFFF"


TISSUE = 1
"""Label of tiles that hold tissue; 0 is background."""


def write_ome_zarr(slide: Slide, target: Target) -> Written:
    """A multiscale image (c, y, x) float32: the first three principal components of each tile, NaN where there is no embedding; then,
    where the store has it, the attention that the pool paid to the tile, a channel a head.

    Pixel (row, col) is centred on its tile: scale is the step between tiles and translation half a tile, in µm from the corner of
    the image, or in level-0 px where the slide has no resolution. `labels/tissue` is 1 where a tile was kept for its tissue.

    Memory bound: a block of rows, and bands of 256 rows of the tile grid.

    Raises
    ------
    InputError
        The tiles lie on no regular grid.
    """
    place = grid_place(slide)
    with target.writing() as path:
        components = principal_components(slide.vector_blocks())
        root = zarr.create_group(path)
        image = write_pyramid(
            root, slide.id, _bands(slide, components), (_channel_count(slide), *grid_shape(slide)), place, halve_means, np.nan
        )
        about: dict[str, Any] = {"version": VERSION, "multiscales": [image], "omero": {"channels": _channels(root)}}
        root.attrs["ome"] = about
        labels = root.create_group("labels", attributes={"ome": {"version": VERSION, "labels": ["tissue"]}})
        tissue = labels.create_group("tissue")
        levels = write_pyramid(tissue, "tissue", _tissue_bands(slide), grid_shape(slide), place, halve_largest, 0)
        colours = [{"label-value": TISSUE, "rgba": [0, 140, 60, 128]}]
        about = {
            "version": VERSION,
            "multiscales": [levels],
            "image-label": {"version": VERSION, "colors": colours, "source": {"image": "../../"}},
        }
        tissue.attrs["ome"] = about
    return Written.without_failed(slide)


def grid_shape(slide: Slide) -> tuple[int, int]:
    """Rows and columns of the tile grid."""
    grid = slide.grid()
    return grid.rows, grid.cols


def grid_place(slide: Slide) -> Place:
    """Where the tiles of the grid lie. Raises InputError where they lie on none."""
    grid, length = slide.grid(), 1.0 if slide.mpp is None else slide.mpp
    y, x = ((start + grid.l0_extent / 2) * length for start in grid.l0_offset)
    return Place(grid.stride * grid.scale * length, (y, x), None if slide.mpp is None else "micrometer")


def grid_bands(
    slide: Slide, fill: NDArray[Any], values: Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]], height: int = CHUNK
) -> Iterator[NDArray[Any]]:
    """Bands (c, height, cols) of the tile grid, from top to bottom, the last one of fewer rows.

    Parameters
    ----------
    slide : Slide
        Whose grid it is.
    fill : (c,) array
        What stands where there is no tile; its dtype is that of the bands.
    values : iterator
        Rows (m,), columns (m,) and values (m, c) of tiles, row-major.
    height : int
        Of a band, rows.
    """
    rows, cols = grid_shape(slide)
    top = 0

    def empty() -> NDArray[Any]:
        return np.broadcast_to(fill[:, None, None], (len(fill), min(height, rows - top), cols)).copy()

    band = empty()
    for tile_row, tile_col, found in values:
        start = 0
        while start < len(tile_row):
            end = int(np.searchsorted(tile_row, top + height))
            band[:, tile_row[start:end] - top, tile_col[start:end]] = found[start:end].T
            start = end
            if end < len(tile_row):
                yield band
                top += height
                band = empty()
    while top < rows:
        yield band
        top += height
        band = empty() if top < rows else band


def _channel_count(slide: Slide) -> int:
    """Components, and heads whose attention the store has."""
    attention = slide.attention
    return COMPONENTS + (0 if attention is None else int(attention.shape[1]))


def _bands(slide: Slide, components: Components) -> Iterator[NDArray[Any]]:
    """(channels, CHUNK, cols) float32."""
    attention = slide.attention

    def values() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
        start = 0
        for rows in slide.blocks():
            found = [components.scores(rows.vectors, COMPONENTS)]
            if attention is not None:
                found.append(np.asarray(attention[start : start + len(rows.row)], np.float32))
            start += len(rows.row)
            yield rows.row, rows.col, np.concatenate(found, axis=1)

    return grid_bands(slide, np.full(_channel_count(slide), np.nan, np.float32), values())


def _tissue_bands(slide: Slide) -> Iterator[NDArray[Any]]:
    """(CHUNK, cols) uint8: tiles of which a part is tissue; where tissue was never looked for, all."""
    values = ((rows.row, rows.col, np.where(rows.tissue <= 0, 0, TISSUE).astype(np.uint8)[:, None]) for rows in slide.blocks())
    return (band[0] for band in grid_bands(slide, np.zeros(1, np.uint8), values))


def _channels(image: zarr.Group) -> list[dict[str, Any]]:
    """Names, colours and ranges of the channels, for viewers; ranges are those of the coarsest level, which is small."""
    coarsest = image[max(image.array_keys(), key=int)]
    assert isinstance(coarsest, zarr.Array)
    channels = []
    for number, plane in enumerate(np.asarray(coarsest[:])):
        is_component = number < COMPONENTS
        label = f"PC{number + 1}" if is_component else f"attention {number - COMPONENTS + 1}"
        colour = COLOURS[number] if is_component else ATTENTION_COLOUR
        seen = plane[np.isfinite(plane)]
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        window = {"min": low, "max": high, "start": low, "end": high}
        channels.append({"label": label, "color": colour, "active": is_component, "window": window})
    return channels
