"""What colour alone would tell: each tile's mean and spread on the slide's thumbnail, which needs no encoder."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilestream.fitting.metrics import Floats, Ints
from tilestream.store.slide import Slide
from tilestream.store.slide_store import THUMBNAIL


def read_colours(slide: Slide, rows: Ints) -> Floats | None:
    """(m, 6) mean and standard deviation of red, green and blue of tiles, 0 to 1; None where a slide has no thumbnail, as imported ones.

    Sums over the pixels whose centres lie in a tile, at least one.
    """
    raw = slide.folder.get(THUMBNAIL)
    if raw is None:
        return None
    with Image.open(io.BytesIO(raw)) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    factor = pixels.shape[0] / slide.size.height, pixels.shape[1] / slide.size.width
    spans = [
        _span(slide.read_column(name)[rows], slide.l0_extent, scale, pixels.shape[axis])
        for axis, (name, scale) in enumerate(zip(("y", "x"), factor, strict=True))
    ]
    (top, bottom), (left, right) = spans
    count = ((bottom - top) * (right - left))[:, None]
    means = [_sums(values, top, bottom, left, right) / count for values in (pixels, pixels**2)]
    return np.concatenate([means[0], np.sqrt(np.maximum(means[1] - means[0] ** 2, 0))], axis=1)


def _span(start: NDArray[np.int64], side: float, scale: float, length: int) -> tuple[Ints, Ints]:
    """First pixel and the one behind the last along an axis."""
    first = np.clip(np.rint(start * scale).astype(np.int64), 0, length - 1)
    last = np.clip(np.rint((start + side) * scale).astype(np.int64), first + 1, length)
    return first, last


def _sums(values: Floats, top: Ints, bottom: Ints, left: Ints, right: Ints) -> Floats:
    """(m, 3) sums over boxes, by a summed-area table."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1, values.shape[2]))
    table[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    found: Floats = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return found
