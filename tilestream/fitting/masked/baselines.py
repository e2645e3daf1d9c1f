"""What tells a hidden token without learning a context: the mean, the window's mean, the nearest token, and a linear model of the neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.fitting.masked.blocks import Block
from tilestream.fitting.metrics import Floats, Ints

Mask = NDArray[np.bool_]

NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]

COMPONENTS = 32
"""Principal components of each neighbour by itself; means of neighbours and of the window come whole."""

STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Penalties that are tried, each times the number of tokens over 10,000."""

MOST = 20_000
"""Hidden tokens that the linear model is fitted on at most."""


def window_mean(z: Floats, visible: Mask, row: Ints, col: Ints, window: int) -> Floats:
    """(m, d) mean of the visible tokens of each token's window; 0 where there is none."""
    _, number = np.unique((row // window) * (1 << 31) + col // window, return_inverse=True)
    total, count = np.zeros((int(number.max()) + 1, z.shape[1])), np.bincount(number[visible], minlength=int(number.max()) + 1)
    np.add.at(total, number[visible], z[visible])
    found: Floats = (total / np.maximum(count, 1)[:, None])[number]
    return found


def nearest(z: Floats, visible: Mask, row: Ints, col: Ints) -> Floats:
    """(m, d) mean of the visible tokens that are nearest to each token, itself left out; 0 where none is visible."""
    seen = np.flatnonzero(visible)
    if not len(seen):
        return np.zeros_like(z)
    apart = (row[:, None] - row[None, seen]) ** 2 + (col[:, None] - col[None, seen]) ** 2
    apart[seen, np.arange(len(seen))] = np.iinfo(np.int64).max
    share = (apart == apart.min(axis=1, keepdims=True)).astype(np.float64)
    found: Floats = (share / share.sum(axis=1, keepdims=True)) @ z[seen]
    return found


def neighbours(z: Floats, visible: Mask, row: Ints, col: Ints) -> tuple[Floats, NDArray[np.float64]]:
    """(m, 8, d) the visible neighbours of each token, 0 where there is none, and (m, 8) 1 where there is one."""
    index = np.full((int(row.max() - row.min()) + 3, int(col.max() - col.min()) + 3), -1)
    y, x = row - row.min() + 1, col - col.min() + 1
    index[y[visible], x[visible]] = np.flatnonzero(visible)
    at = np.stack([index[y + dy, x + dx] for dy, dx in NEIGHBOURS], axis=1)
    there = (at >= 0).astype(np.float64)
    return z[np.maximum(at, 0)] * there[..., None], there


@dataclass(frozen=True)
class NeighbourRidge:
    """Ridge regression of a token on its neighbours, their mean, and the mean of its window; what is hidden is left out and said to be."""

    axes: Floats
    """(d, k) principal axes of tokens."""
    weight: Floats
    """(features, d)"""
    window: int
    strength: float

    def predict(self, z: Floats, visible: Mask, row: Ints, col: Ints, at: Ints) -> Floats:
        """(len(at), d) of standardised tokens (m, d)."""
        found: Floats = _features(z, visible, row, col, at, self.axes, self.window) @ self.weight
        return found


def _features(z: Floats, visible: Mask, row: Ints, col: Ints, at: Ints, axes: Floats, window: int) -> Floats:
    each, there = neighbours(z, visible, row, col)
    mean = each.sum(axis=1) / np.maximum(there.sum(axis=1), 1)[:, None]
    wide = window_mean(z, visible, row, col, window)
    parts: list[Floats] = [(each[at] @ axes).reshape(len(at), -1), there[at], mean[at], wide[at], np.ones((len(at), 1))]
    return np.concatenate(parts, axis=1)


Hidden = Iterable[tuple[Block, Floats, Mask]]
"""Blocks with their standardised tokens and what is visible of them."""


def fit_ridge(hidden: Hidden, axes: Floats, window: int) -> NeighbourRidge:
    """The linear model of some blocks; its penalty is the one that serves every fifth of them best, which are then learned from too."""
    sums: list[list[Floats]] = []
    tuned: list[tuple[Floats, Floats]] = []
    count = 0
    for number, (x, y) in enumerate(_pairs(hidden, axes, window)):
        part = [x.T @ x, x.T @ y]
        kept = number % 5 == 4
        if kept:
            tuned.append((x, y))
        while len(sums) < 2:
            sums.append([np.zeros_like(total) for total in part])
        sums[int(kept)] = [total + more for total, more in zip(sums[int(kept)], part, strict=True)]
        count += len(x)
        if count >= MOST:
            break
    (gram, cross), rest = sums[0], sums[1]
    best = STRENGTHS[-1]
    if tuned:
        errors = {}
        for strength in STRENGTHS:
            weight = _solve(gram, cross, strength * count / 10_000)
            errors[strength] = sum(float(np.square(x @ weight - y).sum()) for x, y in tuned)
        best = min(errors, key=lambda strength: errors[strength])
    return NeighbourRidge(axes, _solve(gram + rest[0], cross + rest[1], best * count / 10_000), window, best)


def _pairs(hidden: Hidden, axes: Floats, window: int) -> Iterator[tuple[Floats, Floats]]:
    for block, z, visible in hidden:
        at = np.flatnonzero(~visible)
        if len(at):
            yield _features(z, visible, block.tok_row, block.tok_col, at, axes, window), z[at]


def _solve(gram: Floats, cross: Floats, penalty: float) -> Floats:
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), cross), np.float64)
