"""Which tiles are like one: cosine similarity over a slide, block by block, and the nearest of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilestream.viewer.slide import Floats, ViewedSlide


def similarity(slide: ViewedSlide, query: Floats) -> Floats:
    """(n,) float32 cosine of each tile of a slide with `query` (d,); NaN where a tile has no embedding or a length of 0.

    Memory bound: a block of rows.
    """
    found = np.full(slide.layout.tiles, np.nan, np.float32)
    norms = slide.norms()
    length = float(np.linalg.norm(query))
    if not (np.isfinite(length) and length > 0):
        return found
    unit = (query / length).astype(np.float32)
    for part, rows in slide.passes():
        with np.errstate(invalid="ignore", divide="ignore"):
            found[part] = rows @ unit / norms[part]
    found[~(slide.good & (norms > 0))] = np.nan
    return found


def nearest(similar: Floats, count: int, exclude: int | None = None) -> NDArray[np.int64]:
    """Numbers of the `count` most similar tiles, most similar first, without `exclude`; fewer where there are fewer."""
    values = np.where(np.isfinite(similar), similar, -np.inf)
    if exclude is not None:
        values[exclude] = -np.inf
    count = min(count, int(np.isfinite(values).sum()))
    if not count:
        return np.empty(0, np.int64)
    top = np.argpartition(-values, count - 1)[:count]
    ordered: NDArray[np.int64] = top[np.lexsort((top, -values[top]))].astype(np.int64)
    return ordered
