"""The first principal components of a slide's embeddings, from rows that pass by twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.interop.stored_slide import StoredSlide
from tilestream.models.pca import principal_axes

COMPONENTS = 3


@dataclass(frozen=True)
class Components:
    """The axes of largest variance, largest first; the largest loading of each is positive."""

    mean: NDArray[np.float64]
    """(d,) mean embedding."""
    axes: NDArray[np.float64]
    """(d, <= 3); fewer where the embeddings have fewer dimensions, none for fewer than two tiles."""

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(m, 3) float32 of (m, d): components around the mean; NaN in rows that are not finite and for components that are missing."""
        scores = np.full((len(embeddings), COMPONENTS), np.nan, np.float32)
        good = np.isfinite(embeddings).all(axis=1)
        scores[good, : self.axes.shape[1]] = (embeddings[good] - self.mean) @ self.axes
        return scores


def find_components(slide: StoredSlide) -> Components:
    """The components of the vectors of a slide's tiles that are exported.

    Memory bound: a block of rows, and two matrices of (d, d) float64.
    """
    dim = slide.dim
    total, count = np.zeros(dim), 0

    def blocks() -> Iterator[NDArray[np.float32]]:
        nonlocal total, count
        for rows in slide.store.blocks(slide.vectors):
            good = rows[np.isfinite(rows).all(axis=1)]
            total, count = total + good.sum(axis=0, dtype=np.float64), count + len(good)
            yield rows

    axes = principal_axes(blocks())
    return Components(total / max(1, count), np.zeros((dim, 0)) if axes is None else axes)
