"""Where tiles lie in the scatter: an even sample of them, by principal components or UMAP."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ConfigError
from tilestream.viewer.slide import Floats, ViewedSlide

MOST_POINTS = {"PCA": 40_000, "UMAP": 5_000}
"""Points of each kind: what a browser draws while it is dragged, and what UMAP places in about half a minute."""

KINDS = tuple(MOST_POINTS)


def sample_rows(good: NDArray[np.bool_], kind: str) -> NDArray[np.int64]:
    """Numbers of the tiles that are shown, spread evenly over those with an embedding."""
    rows = np.flatnonzero(good)
    if len(rows) <= MOST_POINTS[kind]:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_POINTS[kind]).astype(np.int64)]


def place_points(slide: ViewedSlide, kind: str) -> tuple[NDArray[np.int64], Floats]:
    """Numbers of tiles (m,) and their places (m, 2).

    Raises
    ------
    ConfigError
        UMAP is asked for, and not installed.
    """
    scores, rows = slide.scores(), sample_rows(slide.good, kind)
    if kind == "PCA":
        return rows, np.nan_to_num(scores[rows, :2].astype(np.float32))
    try:
        import umap
    except ModuleNotFoundError as error:
        raise ConfigError("UMAP is not installed: pip install umap-learn, or choose PCA.") from error
    known = np.isfinite(scores[rows]).all(axis=0)
    placed: Floats = umap.UMAP(random_state=0, n_jobs=1).fit_transform(scores[rows][:, known].astype(np.float32))
    return rows, placed.astype(np.float32)
