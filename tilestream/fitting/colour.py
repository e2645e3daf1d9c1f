"""What colour alone would tell: each tile's mean and spread on the slide's thumbnail, which needs no encoder."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.fitting.metrics import Floats, Ints
from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL
from tilestream.tiles.thumbnail import LARGEST_SIDE, MOST_SIDE, THUMBNAIL_UM

MOST_PIXELS = 2 * 1024**2
"""Of a thumbnail that is looked at; a larger one is made smaller."""

BYTES_A_PIXEL = 3 + 3 * 8 + 3 * 8
"""Of those pixels: as read, three planes, and a table with what it is made from."""


def read_colours(slide: Slide, rows: Ints) -> Floats | None:
    """(m, 6) mean and standard deviation of red, green and blue of tiles, 0 to 1; None where a slide has no thumbnail, as imported ones.

    Sums over the pixels whose centres lie in a tile, at least one. Memory bound: `colour_bytes`.
    """
    raw = slide.folder.get(THUMBNAIL)
    if raw is None:
        return None
    with Image.open(io.BytesIO(raw)) as picture:
        coarser = math.ceil(math.sqrt(picture.width * picture.height / MOST_PIXELS))
        pixels = np.asarray(picture.convert("RGB").reduce(coarser))
    factor = pixels.shape[0] / slide.size.height, pixels.shape[1] / slide.size.width
    spans = [
        _span(slide.read_column(name)[rows], slide.l0_extent, scale, pixels.shape[axis])
        for axis, (name, scale) in enumerate(zip(("y", "x"), factor, strict=True))
    ]
    (top, bottom), (left, right) = spans
    count = ((bottom - top) * (right - left))[:, None]
    planes = [pixels[..., channel].astype(np.float64) / 255 for channel in range(3)]
    means = [np.stack([_sums(plane**power, top, bottom, left, right) for plane in planes], axis=1) / count for power in (1, 2)]
    return np.concatenate([means[0], np.sqrt(np.maximum(means[1] - means[0] ** 2, 0))], axis=1)


def colour_bytes(slide: Slide) -> int:
    """What the colours of a slide take while they are read, its picture decoded twice included."""
    side = max(slide.size.height, slide.size.width)
    scale = max(1.0, side / LARGEST_SIDE if slide.mpp is None else THUMBNAIL_UM / slide.mpp, side / MOST_SIDE) / 1.5  # it is about that
    pixels = slide.size.height * slide.size.width / scale**2
    return int(6 * pixels + BYTES_A_PIXEL * min(pixels, MOST_PIXELS))


def _span(start: NDArray[np.int64], side: float, scale: float, length: int) -> tuple[Ints, Ints]:
    """First pixel and the one behind the last along an axis."""
    first = np.clip(np.rint(start * scale).astype(np.int64), 0, length - 1)
    last = np.clip(np.rint((start + side) * scale).astype(np.int64), first + 1, length)
    return first, last


def _sums(values: Floats, top: Ints, bottom: Ints, left: Ints, right: Ints) -> Floats:
    """(m,) sums over boxes, by a summed-area table."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    table[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    found: Floats = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return found
