"""Stored vectors for training: rows of tiles that were drawn, means of slides, bags; never more than the limit says, whatever the cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.store.blocks import widen
from tilestream.store.slide import Slide
from tilestream.store.zarr_chunks import chunk_reader

THREADS = 4
"""Slides that are read at once."""

Vectors = NDArray[np.float32]

Labels = NDArray[np.int16]
"""Classes of a slide's tiles, -1 where one has none."""


@dataclass(frozen=True)
class Drawn:
    """Labelled tiles of several slides; m of them, slide by slide."""

    x: Vectors
    """(m, d)"""
    label: Ints
    """(m,)"""
    case: Ints
    """(m,) number of the slide."""
    row: Ints
    """(m,) row in its store."""
    labelled: int
    """Labelled tiles that there are, of which these were drawn."""


def draw_rows(labels: Sequence[Labels], classes: int, limit: int, seed: int) -> list[Ints]:
    """Rows of each slide that are learned from: all labelled ones, or `limit` at most, even over classes and over the slides of a class.

    Slides and classes that have fewer than their even share leave the rest to the others.
    """
    counts = np.array([np.bincount(label[label >= 0], minlength=classes) for label in labels]).reshape(len(labels), classes)
    shares = _even(counts.sum(axis=0), limit)
    wanted = np.stack([_even(counts[:, k], int(shares[k])) for k in range(classes)], axis=1)
    chance = np.random.default_rng(seed)
    drawn = []
    for label, share in zip(labels, wanted, strict=True):
        rows = [chance.permutation(np.flatnonzero(label == k))[:count] for k, count in enumerate(share.tolist())]
        drawn.append(np.sort(np.concatenate(rows)).astype(np.int64))
    return drawn


def _even(there: Ints, limit: int) -> Ints:
    """How many to take of each, as even as can be: all of what is below a level, that level of the others, and no more than `limit` in all."""
    if there.sum() <= limit:
        return there
    low, high = 0, int(there.max())
    while low < high:  # the highest level that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(there, middle).sum() <= limit else (low, middle - 1)
    taken = np.minimum(there, low)
    over = np.flatnonzero(there > low)[: limit - int(taken.sum())]
    taken[over] += 1
    return taken


def read_drawn(slides: Sequence[Slide], what: str, labels: Sequence[Labels], classes: int, limit: int, seed: int) -> Drawn:
    """The vectors of labelled tiles, `limit` at most."""
    rows = draw_rows(labels, classes, limit, seed)
    starts = np.cumsum([0, *map(len, rows)])
    x = np.empty((int(starts[-1]), slides[0].vectors(what).shape[1]), np.float32)

    def read(i: int) -> None:
        x[starts[i] : starts[i + 1]] = read_rows(slides[i].vectors(what), rows[i])

    with ThreadPoolExecutor(THREADS, thread_name_prefix="fit") as pool:
        list(pool.map(read, range(len(slides))))
    return Drawn(
        x, np.concatenate([label[part] for label, part in zip(labels, rows, strict=True)]).astype(np.int64),
        np.repeat(np.arange(len(rows)), [len(part) for part in rows]), np.concatenate(rows), sum(int((label >= 0).sum()) for label in labels),
    )  # fmt: skip


def read_rows(array: zarr.Array[Any], rows: Ints, out: NDArray[np.floating] | None = None) -> Vectors:
    """(m, d) float32 some rows of an array, in rising order; each chunk that holds any is read once. `out` may be given, then also of the stored type."""
    found = np.empty((len(rows), array.shape[1]), np.float32) if out is None else out
    chunks, height = chunk_reader(array), array.chunks[0]
    numbers, first = np.unique(rows // height, return_index=True)
    for k, start, end in zip(numbers.tolist(), first.tolist(), np.append(first, len(rows))[1:].tolist(), strict=True):
        chunk = np.asarray(array[k * height : (k + 1) * height]) if chunks is None else chunks.chunk((k, 0))
        at = rows[start:end] - k * height
        widen(chunk[at[0] : at[-1] + 1] if (np.diff(at) == 1).all() else chunk[at], found[start:end])
    return found


def pool_slides(slides: Sequence[Slide], what: str, rule: str) -> Floats:
    """(n, d) float64 mean or maximum of the good tiles of each slide.

    Memory bound: a block of rows a thread, and the result.

    Raises
    ------
    InputError
        A slide has no good tile.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fit") as pool:
        return np.stack(list(pool.map(lambda slide: _pooled(slide, what, rule), slides)))


def _pooled(slide: Slide, what: str, rule: str) -> Floats:
    found: Floats | None = None
    count = 0
    for x in good_vectors(slide, what):
        if len(x):
            part = x.sum(axis=0, dtype=np.float64) if rule == "mean" else x.max(axis=0).astype(np.float64)
            found = part if found is None else found + part if rule == "mean" else np.maximum(found, part)
            count += len(x)
    if found is None:
        raise InputError(f"{slide.id} has no tile with an embedding. Leave it out of the table.")
    return found / count if rule == "mean" else found


def good_vectors(slide: Slide, what: str) -> Iterator[Vectors]:
    """The vectors (m, d) of the tiles that have them, chunk by chunk."""
    array, good = slide.vectors(what), np.flatnonzero(slide.read_good())
    step = max(1, 2048 // array.chunks[0]) * array.chunks[0]
    for start in range(0, array.shape[0], step):
        rows = good[(good >= start) & (good < start + step)]
        if len(rows):
            yield read_rows(array, rows)
