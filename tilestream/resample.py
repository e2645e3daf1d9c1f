"""Area average: every output pixel is the mean of the source area that it covers, fractions of pixels included."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def area_average(pixels: NDArray[np.uint8], y: float, x: float, extent: float, size: int) -> NDArray[np.uint8]:
    """Shrink the square of `extent` source pixels at (y, x) to `size` output pixels a side.

    Parameters
    ----------
    pixels : (h, w, c) uint8
        Source pixels that contain the square.
    y, x : float
        Top-left of the square, in pixels of the array; may be fractional.
    extent : float
        Side of the square in source pixels.
    size : int
        Side of the result.

    Returns
    -------
    (size, size, c) uint8, each value the exact mean over its area, rounded half up.
    """
    factor = extent / size
    whole = round(factor)
    if factor == whole and y == int(y) and x == int(x):
        return _block_mean(pixels[int(y) : int(y) + size * whole, int(x) : int(x) + size * whole], whole)
    rows = _weighted_rows(pixels.astype(np.float32), *_taps(y, factor, size, pixels.shape[0]))  # (size, w, c)
    columns = np.ascontiguousarray(rows.transpose(1, 0, 2))  # (w, size, c)
    mean = _weighted_rows(columns, *_taps(x, factor, size, pixels.shape[1]))  # (size x, size y, c)
    return (mean.transpose(1, 0, 2) + np.float32(0.5)).astype(np.uint8)


def _block_mean(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean of factor x factor blocks: integers only, (h, w, c) -> (h / factor, w / factor, c)."""
    total = np.dtype(np.uint16 if factor <= 16 else np.uint32)  # 16 * 16 * 255 is the largest sum that 16 bits hold
    rows = pixels[0::factor].astype(total)
    for k in range(1, factor):
        np.add(rows, pixels[k::factor], out=rows)
    blocks = rows[:, 0::factor].copy()
    for k in range(1, factor):
        np.add(blocks, rows[:, k::factor], out=blocks)
    area = factor * factor
    return ((blocks.astype(np.uint32) + area // 2) // area).astype(np.uint8)


@lru_cache(maxsize=4096)
def _taps(offset: float, factor: float, size: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source indices and weights, each (size, taps), of bins `[offset + i * factor, offset + (i + 1) * factor)`."""
    low = offset + np.arange(size) * factor
    high = low + factor
    index = np.floor(low).astype(np.int64)[:, None] + np.arange(math.floor(factor) + 2)
    overlap = np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None])
    weight = np.clip(overlap, 0, None) / factor
    return np.clip(index, 0, length - 1), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def _weighted_rows(values: NDArray[np.float32], index: NDArray[np.int64], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, c) -> (size, w, c): each output row the weighted sum of its source rows."""
    out = values[index[:, 0]] * weight[:, 0, None, None]
    for k in range(1, index.shape[1]):
        out += values[index[:, k]] * weight[:, k, None, None]
    return out
