"""Tiles in k groups: k-means on the leading principal components."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq

from tilestream.store.layout import BLOCK_ROWS
from tilestream.viewer.slide import Floats

MOST_GROUPS = 20

SAMPLE = 4096
"""Tiles that the centres are found on, spread over all, about."""


def _centres(rows: NDArray[np.float64], k: int, seed: int) -> NDArray[np.float64]:
    """(k, c) centres of groups of rows (m, c), of more distinct ones than k."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)  # fewer groups than asked for are shown as they are
        found: NDArray[np.float64] = kmeans2(rows, k, minit="++", rng=np.random.default_rng(seed))[0]
    return found


def cluster(scores: Floats, k: int, seed: int = 0) -> NDArray[np.int64]:
    """(n,) group 0 to k - 1 of each row of (n, c) scores, the largest group first; -1 for rows that are not finite.

    The same scores, k and seed give the same groups. Components that are missing altogether count for nothing.
    """
    known = np.isfinite(scores).any(axis=0)
    good = np.flatnonzero(np.isfinite(scores[:, known]).all(axis=1)) if known.any() else np.empty(0, np.int64)
    groups = np.full(len(scores), -1, np.int64)
    if not len(good):
        return groups
    sample = good[:: max(1, len(good) // SAMPLE)]
    rows = scores[sample][:, known].astype(np.float64)
    distinct = np.unique(rows, axis=0)
    centres = distinct if len(distinct) <= k else _centres(rows, k, seed)
    for start in range(0, len(good), BLOCK_ROWS):
        part = good[start : start + BLOCK_ROWS]
        groups[part] = vq(scores[part][:, known].astype(np.float64), centres)[0]
    sizes = np.bincount(groups[good], minlength=len(centres))
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    groups[good] = rank[groups[good]]
    return groups
