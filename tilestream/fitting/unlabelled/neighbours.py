"""Tiles of a cohort that are alike: the nearest ones to some vectors, and pairs that are nearly the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.training.features import good_vectors, read_rows
from tilestream.store.cohort import Cohort, open_output
from tilestream.store.slide import Slide

if TYPE_CHECKING:
    import pandas as pd

COMPARED = 20_000
"""Tiles among which duplicates are looked for, evenly over the slides."""

LISTED = 50
"""Pairs of tiles that are listed."""

SAME = 0.9999
"""Cosine of centred vectors from which on two tiles are listed as duplicates."""


def find_nearest(output: str | os.PathLike[str], vectors: NDArray[np.floating[Any]], count: int = 10, what: str = "tiles") -> pd.DataFrame:
    """The tiles of an output that are most like some vectors; all are compared, block by block.

    Parameters
    ----------
    output : path or URL
        The `output` of a run, or one slide of it.
    vectors : (q, d) or (d,)
        What is looked for, e.g. `tilestream.open(output)["a"].embeddings[7]`.
    count : int
        Tiles of each.
    what : str
        Which vectors: tiles or context.

    Returns
    -------
    pandas.DataFrame
        query, slide, tile (its row), y, x (level-0 px of its top-left) and cosine; by query, the nearest first.

    Raises
    ------
    InputError
        There is no output, or its vectors have another length.
    """
    import pandas as pd

    found = open_output(output)
    slides = list(found) if isinstance(found, Cohort) else [found]
    queries = np.atleast_2d(np.asarray(vectors, np.float64))
    for slide in slides:
        if slide.vectors(what).shape[1] != queries.shape[1]:
            raise InputError(f"vectors have {queries.shape[1]} features, but those of {slide.id} have {slide.vectors(what).shape[1]}.")
    hits = [(q, slides[i], row, cosine) for q, near in enumerate(nearest_tiles(slides, queries, count, what)) for i, row, cosine in near]
    places = [slide.positions[row].tolist() for _, slide, row, _ in hits]
    rows = [(q, slide.id, row, y, x, cosine) for (q, slide, row, cosine), (y, x) in zip(hits, places, strict=True)]
    return pd.DataFrame(rows, columns=["query", "slide", "tile", "y", "x", "cosine"])


def nearest_tiles(
    slides: Sequence[Slide], queries: NDArray[np.floating[Any]], count: int = 10, what: str = "tiles"
) -> list[list[tuple[int, int, float]]]:
    """The nearest tiles of a cohort to each query, exact: slide, row and cosine, the nearest first.

    Order: of equals, the slide and row that come first. Memory bound: a block a thread, and `count` tiles a query.

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
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    best: list[list[tuple[int, int, float]]] = [[] for _ in queries]
    for i, rows, x in numbered_blocks(slides, what):
        cosine = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)) @ unit.T  # (n, q)
        for q, found in enumerate(best):
            near = np.argsort(-cosine[:, q], kind="stable")[:count]
            merged = [*found, *((i, int(rows[m]), float(cosine[m, q])) for m in near.tolist())]
            best[q] = sorted(merged, key=lambda hit: (-hit[2], hit[0], hit[1]))[:count]
    return best


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
