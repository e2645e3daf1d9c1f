"""Where tiles lie in the scatter: an even sample of them, by principal components or UMAP."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilestream.viewer.slide import Floats

MOST_POINTS = {"PCA": 40_000, "UMAP": 5_000}
"""Points of each kind: what a browser draws while it is dragged, and what UMAP places in about half a minute."""


def sample_rows(good: NDArray[np.bool_], kind: str) -> NDArray[np.int64]:
    """Numbers of the tiles that are shown, spread evenly over those with an embedding."""
    rows = np.flatnonzero(good)
    if len(rows) <= MOST_POINTS[kind]:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_POINTS[kind]).astype(np.int64)]


def umap_points(scores: Floats) -> tuple[Floats, str]:
    """(m, 2) float32 places by UMAP and words; by the first two components where umap is not installed, and the words say so."""
    try:
        import umap
    except ModuleNotFoundError:
        return scores[:, :2].astype(np.float32), "PCA: UMAP needs pip install umap-learn"
    known = np.isfinite(scores).all(axis=0)
    placed: Floats = umap.UMAP(random_state=0, n_jobs=1).fit_transform(scores[:, known].astype(np.float32))
    return placed.astype(np.float32), "UMAP"
