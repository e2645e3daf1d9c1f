"""OME-Zarr images and labels on the tile grid, version 0.5: one pixel a tile, places in µm.

Source: https://ngff.openmicroscopy.org/0.5/ (multiscales, axes, coordinateTransformations, labels, image-label, omero).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.heads.ome import Place

CHUNK = 256
"""Side of a chunk, px: rows of the grid that are held at once."""

SMALLEST = 64
"""Longest side, px, of the coarsest level."""

Halve = Callable[[NDArray[Any]], NDArray[Any]]
"""From (..., 2h, 2w) to (..., h, w)."""


def level_shapes(rows: int, cols: int) -> list[tuple[int, int]]:
    """Height and width of each level, halved until the longest side is at most `SMALLEST`."""
    shapes = [(rows, cols)]
    while max(shapes[-1]) > SMALLEST:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def write_pyramid(
    group: zarr.Group, name: str, bands: Iterator[NDArray[Any]], shape: tuple[int, ...], place: Place, halve: Halve, fill: float
) -> dict[str, Any]:
    """Fill `group` with the levels of an image and return its entry of `multiscales`.

    Parameters
    ----------
    group : zarr.Group
        Empty; its arrays become 0, 1, ...
    name : str
        Of the image.
    bands : iterator
        Arrays (..., CHUNK, w), the last one of fewer rows, from top to bottom.
    shape : tuple of int
        (h, w) or (c, h, w).
    place : Place
        Of the finest level.
    halve : callable
        Makes each level of the one before; a last odd row or column is paired with `fill`.
    fill : float
        Value of what is nowhere.

    Memory bound: two bands of `CHUNK` rows.
    """
    axes = "cyx"[-len(shape) :]
    datasets = []
    for level, sides in enumerate(level_shapes(*shape[-2:])):
        first = next(bands)
        array = group.create_array(
            str(level), shape=(*shape[:-2], *sides), dtype=first.dtype, fill_value=fill, dimension_names=list(axes),
            chunks=(*shape[:-2], min(CHUNK, sides[0]), min(CHUNK, sides[1])),
        )  # fmt: skip
        start = 0
        for band in chain([first], bands):
            array[..., start : start + band.shape[-2], :] = band
            start += band.shape[-2]
        datasets.append({"path": str(level), "coordinateTransformations": place.transformations(level, axes)})
        bands = _halved(array, halve, fill)
    return {"name": name, "axes": place.axes(axes), "datasets": datasets}


def _halved(array: zarr.Array[Any], halve: Halve, fill: float) -> Iterator[NDArray[Any]]:
    """The bands of the next level."""
    height, width = array.shape[-2:]
    for start in range(0, height, 2 * CHUNK):
        band = np.asarray(array[..., start : start + 2 * CHUNK, :])
        odd = [(0, 0)] * (band.ndim - 2) + [(0, band.shape[-2] % 2), (0, width % 2)]
        yield halve(np.pad(band, odd, constant_values=fill))


def halve_means(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means (c, h, w) over 2 x 2 px of (c, 2h, 2w) of those that are not NaN."""
    quarters = np.stack([band[..., y::2, x::2] for y in (0, 1) for x in (0, 1)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # four missing tiles make a missing pixel
        means: NDArray[np.float32] = np.nanmean(quarters, axis=0, dtype=np.float32)
    return means


def halve_largest(band: NDArray[Any]) -> NDArray[Any]:
    """The largest (h, w) of 2 x 2 px of (2h, 2w): a label is not lost."""
    largest: NDArray[Any] = np.maximum(np.maximum(band[::2, ::2], band[1::2, ::2]), np.maximum(band[::2, 1::2], band[1::2, 1::2]))
    return largest
