"""Clusters of the tiles of a cohort without any label: mini-batch k-means over streamed vectors, as a head that `run` applies as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilestream.errors import InputError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.training.features import THREADS, Vectors, good_vectors
from tilestream.fitting.training.linear import Linear
from tilestream.fitting.unlabelled.neighbours import numbered_blocks
from tilestream.store.blocks import map_ahead
from tilestream.store.slide import Slide

BEGIN_ROWS = 20_000
"""Rows from which the first centres are drawn, evenly over the slides."""

PASSES = 3
"""Times that all tiles are gone over."""

OUTLIERS = 50
"""Tiles that are listed because they lie furthest out."""


@dataclass(frozen=True)
class Clusters:
    """Centres of tiles, and what lies around them."""

    centres: Floats
    """(k, d)"""
    counts: Ints
    """(slides, k) tiles of each slide nearest to each centre."""
    spread: Floats
    """(k,) root of the mean squared distance of a cluster's tiles from its centre."""
    outliers: list[tuple[int, int, int, float]]
    """Slide, row, cluster and distance, in spreads of the cluster, of the tiles that lie furthest out."""

    @property
    def model(self) -> Linear:
        """Scores whose highest is the nearest centre; their softmax is that of Gaussians of one spread."""
        scale = 2 * max(float((self.spread**2).mean()), 1e-12) / self.centres.shape[1]
        return Linear(2 * self.centres / scale, -(self.centres**2).sum(axis=1) / scale)


def cluster_slides(slides: Sequence[Slide], what: str, count: int, seed: int) -> Clusters:
    """Mini-batch k-means (Sculley 2010) over all tiles of a cohort, begun by k-means++ (Arthur and Vassilvitskii 2007).

    Order: the slides in an order drawn from the seed, each in blocks of its own order. Memory bound: `BEGIN_ROWS` rows, a block a thread and the centres.

    Raises
    ------
    InputError
        There are fewer tiles than clusters.
    """
    chance = np.random.default_rng(seed)
    some = some_rows(slides, what, chance)
    if len(some) < count:
        raise InputError(f"target.clusters: {count}, but there are only {len(some)} tiles with embeddings. Ask for fewer.")
    centres, seen = _first_centres(some, count, chance), np.zeros(count)
    for _ in range(PASSES):
        for i in chance.permutation(len(slides)).tolist():
            for x in good_vectors(slides[i], what):
                centres = _moved(centres, seen, x.astype(np.float64))
    return _described(slides, what, centres)


def some_rows(slides: Sequence[Slide], what: str, chance: np.random.Generator) -> Floats:
    """Rows from all over the cohort: as many of each slide, of blocks that are read one at a time."""
    share = max(1, BEGIN_ROWS // len(slides))
    few = slides if len(slides) <= BEGIN_ROWS else [slides[i] for i in np.sort(chance.permutation(len(slides))[:BEGIN_ROWS]).tolist()]

    def draw(job: tuple[Slide, int]) -> Vectors:
        slide, number = job
        blocks = good_vectors(slide, what)
        x = next(blocks, np.empty((0, int(slide.vectors(what).shape[1])), np.float32))
        return x[np.random.default_rng(number).permutation(len(x))[:share]]

    jobs = [(slide, int(chance.integers(2**31))) for slide in few]
    return np.concatenate(list(map_ahead(draw, jobs, THREADS))).astype(np.float64)


def _first_centres(x: Floats, count: int, chance: np.random.Generator) -> Floats:
    """(count, d) rows far from each other: each is drawn by its squared distance from those before."""
    chosen = [int(chance.integers(len(x)))]
    distance = ((x - x[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(count - 1):
        total = distance.sum()
        chosen.append(int(chance.choice(len(x), p=distance / total)) if total > 0 else int(chance.integers(len(x))))
        distance = np.minimum(distance, ((x - x[chosen[-1]]) ** 2).sum(axis=1))
    return x[chosen]


def nearest_centre(x: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """(n,) the nearest centre of each row, and the squared distance from it."""
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ centres.T + (centres**2).sum(axis=1)
    own = squared.argmin(axis=1)
    return own, np.maximum(squared[np.arange(len(x)), own], 0)


def _moved(centres: Floats, seen: Floats, x: Floats) -> Floats:
    """The centres after a block: each is the mean of all rows that were its own when they came; `seen` counts them."""
    own, _ = nearest_centre(x, centres)
    counts = np.bincount(own, minlength=len(centres))
    sums = np.zeros_like(centres)
    np.add.at(sums, own, x)
    seen += counts
    there = counts > 0
    moved = centres.copy()
    moved[there] += (sums[there] - counts[there, None] * centres[there]) / seen[there, None]
    return moved


def _described(slides: Sequence[Slide], what: str, centres: Floats) -> Clusters:
    """Sizes, spreads and outliers by one more pass."""
    k = len(centres)
    counts, squares = np.zeros((len(slides), k), np.int64), np.zeros(k)
    far: list[tuple[float, int, int, int]] = []
    for i, rows, x in numbered_blocks(slides, what):
        own, squared = nearest_centre(x, centres)
        counts[i] += np.bincount(own, minlength=k)
        squares += np.bincount(own, weights=squared, minlength=k)
        furthest = np.argsort(-squared, kind="stable")[:OUTLIERS].tolist()
        far.extend((float(squared[m]), i, int(rows[m]), int(own[m])) for m in furthest)
        far = sorted(far, key=lambda found: (-found[0], found[1], found[2]))[: 4 * OUTLIERS]
    spread = np.sqrt(squares / np.maximum(counts.sum(axis=0), 1))
    outliers = [(i, row, own, float(np.sqrt(squared) / max(spread[own], 1e-12))) for squared, i, row, own in far]
    return Clusters(centres, counts, spread, sorted(outliers, key=lambda found: -found[3])[:OUTLIERS])
