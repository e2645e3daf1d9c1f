"""Area average: every output pixel is the mean of the source area that it covers, fractions of pixels included."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SHARE = 1e-6
"""Part of an area below which it counts as none: weights that are none but for rounding."""


def area_average(pixels: NDArray[Any], y: float, x: float, extent: float, size: int) -> NDArray[Any]:
    """Shrink the square of `extent` source pixels at (y, x) to `size` output pixels a side.

    Parameters
    ----------
    pixels : (h, w, c) uint8 or float32
        Source pixels that contain the square.
    y, x : float
        Top-left of the square, in pixels of the array; may be fractional.
    extent : float
        Side of the square in source pixels.
    size : int
        Side of the result.

    Returns
    -------
    (size, size, c) uint8, each value the exact mean over its area, rounded half up; of float32 the mean over what is no NaN, NaN where all is.
    """
    factor = extent / size
    if pixels.dtype != np.uint8:
        return _mean_of_values(pixels, y, x, factor, size)
    whole = round(factor)
    if factor == whole and y == int(y) and x == int(x):
        return _block_mean(pixels[int(y) : int(y) + size * whole, int(x) : int(x) + size * whole], whole)
    mean = _turned_mean(pixels, y, x, factor, size)
    mean += np.float32(0.5)
    return np.ascontiguousarray(mean.astype(np.uint8).transpose(2, 0, 1))


def _turned_mean(pixels: NDArray[Any], y: float, x: float, factor: float, size: int) -> NDArray[np.float32]:
    """(h, w, c) -> (size x, c, size y): the weighted mean."""
    height, width, channels = pixels.shape
    rows = _weighted_rows(pixels.reshape(height, -1), *_taps(y, factor, size, height))  # (size, w * c)
    turned = np.ascontiguousarray(rows.reshape(size, width, channels).transpose(1, 2, 0)).reshape(width, -1)  # (w, c * size)
    return _weighted_rows(turned, *_taps(x, factor, size, width)).reshape(size, channels, size)


def _mean_of_values(values: NDArray[np.float32], y: float, x: float, factor: float, size: int) -> NDArray[np.float32]:
    """(h, w, c) float32 -> (size, size, c): the mean over the part of each area that is no NaN."""
    there = ~np.isnan(values)
    if there.all():
        mean = _turned_mean(values, y, x, factor, size)
    else:
        share = _turned_mean(there.view(np.uint8), y, x, factor, size)
        mean = _turned_mean(np.where(there, values, np.float32(0)), y, x, factor, size)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean /= np.where(share > LEAST_SHARE, share, np.float32(np.nan))
    return np.ascontiguousarray(mean.transpose(2, 0, 1))


def _block_mean(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean of factor x factor blocks: integers only, (h, w, c) -> (h / factor, w / factor, c).

    Columns are added channel by channel: an inner loop over the three values of a pixel would take three times as long.
    """
    if factor == 1:
        return pixels.copy()
    total = np.dtype(np.uint16 if factor <= 16 else np.uint32)  # 16 * 16 * 255 + 128 is the largest sum that 16 bits hold
    rows = np.add(pixels[0::factor], pixels[1::factor], dtype=total)
    for k in range(2, factor):
        np.add(rows, pixels[k::factor], out=rows)
    channels, area = pixels.shape[2], factor * factor
    out = np.empty((rows.shape[0], rows.shape[1] // factor, channels), np.uint8)
    for channel in range(channels):
        blocks = np.add(rows[:, 0::factor, channel], rows[:, 1::factor, channel])
        for k in range(2, factor):
            np.add(blocks, rows[:, k::factor, channel], out=blocks)
        blocks += total.type(area // 2)
        out[..., channel] = blocks // total.type(area)
    return out


@lru_cache(maxsize=4096)
def _taps(offset: float, factor: float, size: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source indices and weights, each (size, taps), of bins `[offset + i * factor, offset + (i + 1) * factor)`."""
    low = offset + np.arange(size) * factor
    high = low + factor
    index = np.floor(low).astype(np.int64)[:, None] + np.arange(math.floor(factor) + 2)
    overlap = np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None])
    weight = np.clip(overlap, 0, None) / factor
    return np.clip(index, 0, length - 1), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def _weighted_rows(values: NDArray[Any], index: NDArray[np.int64], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, n) -> (size, n): each output row the weighted sum of its source rows."""
    out = values[index[:, 0]] * weight[:, 0, None]
    part = np.empty_like(out)
    for k in range(1, index.shape[1]):
        np.multiply(values[index[:, k]], weight[:, k, None], out=part)
        out += part
    return out
