"""Tiles of a cohort that are alike: the nearest ones to some vectors, and pairs that are nearly the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.training.features import good_vectors, read_rows
from tilestream.store.cohort import Cohort, open_output
from tilestream.store.slide import Slide

COMPARED = 20_000
"""Tiles among which duplicates are looked for, evenly over the slides."""

LISTED = 50
"""Pairs of tiles that are listed."""

SAME = 0.9999
"""Cosine of centred vectors from which on two tiles are listed as duplicates."""


Hits = list[tuple[int, int, float]]
"""Slide, row and cosine of tiles, the nearest first; of equals, the slide and row that come first."""


def opened_slides(output: str | os.PathLike[str]) -> list[Slide]:
    """The finished slides of an output, or the one that it is."""
    found = open_output(output)
    return list(found) if isinstance(found, Cohort) else [found]


def nearest_tiles(slides: Sequence[Slide], queries: NDArray[np.floating[Any]], count: int = 10, what: str = "tiles") -> list[Hits]:
    """The nearest tiles of a cohort to each query, exact.

    Memory bound: a block a thread, and `count` tiles a query.

    Parameters
    ----------
    slides : sequence of Slide
        Where to look.
    queries : (q, d)
        Vectors.
    count : int
        Tiles of each.
    what : str
        Which vectors: tiles or context.
    """
    unit = directions(queries)
    best: list[Hits] = [[] for _ in queries]
    for i, rows, x in numbered_blocks(slides, what):
        cosine = directions(x) @ unit.T  # (n, q)
        best = [best_hits(found, cosine[:, q], np.full(len(rows), i), rows, count) for q, found in enumerate(best)]
    return best


def directions(x: NDArray[np.floating[Any]]) -> Floats:
    """(n, d) rows of length 1; rows of length 0 stay."""
    found: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return found


def best_hits(hits: Hits, cosine: Floats, slide: Ints, row: Ints, count: int) -> Hits:
    """The `count` nearest of those that were found and of (n,) more."""
    near = np.lexsort((row, slide, -cosine))[:count].tolist()
    merged = [*hits, *((int(slide[m]), int(row[m]), float(cosine[m])) for m in near)]
    return sorted(merged, key=lambda hit: (-hit[2], hit[0], hit[1]))[:count]


def numbered_blocks(slides: Sequence[Slide], what: str) -> Iterator[tuple[int, Ints, Floats]]:
    """Blocks of the good tiles of each slide: its number, their rows and their vectors."""
    for i, slide in enumerate(slides):
        good, start = np.flatnonzero(slide.read_good()), 0
        for x in good_vectors(slide, what):
            yield i, good[start : start + len(x)], x.astype(np.float64)
            start += len(x)


def find_duplicates(slides: Sequence[Slide], what: str, seed: int, rows: int = COMPARED) -> list[tuple[int, int, int, int, float]]:
    """Pairs of tiles with nearly equal vectors, the most alike first: slide and row of both, and the cosine; exact among `rows` tiles, even over slides.

    Vectors are centred, as all of one encoder are alike in part. Memory bound: those rows, and a block of their cosines.
    """
    chance = np.random.default_rng(seed)
    share = max(1, rows // len(slides))
    drawn = [(i, np.sort(chance.permutation(np.flatnonzero(slide.read_good()))[:share])) for i, slide in enumerate(slides)]
    x = np.concatenate([read_rows(slides[i].vectors(what), own) for i, own in drawn])
    places = [(i, int(row)) for i, own in drawn for row in own]
    x -= x.mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    found: list[tuple[int, int, int, int, float]] = []
    for start in range(0, len(x), 2048):
        cosine = x[start : start + 2048] @ x[start:].T
        for a, b in zip(*np.nonzero(np.triu(cosine >= SAME, 1)), strict=True):
            found.append((*places[start + a], *places[start + b], float(cosine[a, b])))
        found = sorted(found, key=lambda pair: (-pair[4], pair[:4]))[:LISTED]
    return found
