"""Principal components of rows that pass by in blocks, and colours made of the first three."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Rows = NDArray[np.float32]

Scatter = NDArray[np.float64]


AXES_ROWS = 4096
"""Rows that the principal axes of a slide are taken from, about."""


LANCZOS_FROM = 1024
"""Dimensions from which on a few axes come faster by Lanczos' way, the import of SciPy's sparse matrices included."""


LARGEST = 1e15
"""Values beyond it have no part in the axes: sums of their squares leave float32."""


class EachBlock(Protocol):
    """Goes over the rows of a slide anew each time, and gives what `work` makes of each block (m, d) float32 and the number of its first row, in order.

    After each block, `skip` blocks are left out. Blocks may be worked on at once.
    """

    def __call__(self, work: Callable[[Rows, int], T], skip: int) -> Iterable[T]: ...


def principal_colours(each: EachBlock, count: int, aside: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Colours (n, 3) uint8 of n rows: the first three principal components, each stretched between its 2nd and 98th percentile.

    The sign of a component is free: each is turned so that its largest loading is positive, so that the same embeddings
    always give the same picture. Rows that are not finite become grey.

    Parameters
    ----------
    each : EachBlock
        Goes over the rows; axes come from about `AXES_ROWS` rows spread over all.
    count : int
        Number of rows, n.
    aside : (n,) bool, optional
        Rows that have a colour but no part in the axes and the stretching.
    """

    def moments(rows: Rows, first: int) -> Moments:
        return Moments.of(rows if aside is None else rows[~aside[first : first + len(rows)]])

    axes = _axes(each(moments, max(0, count // AXES_ROWS - 1)), 3)

    def project(rows: Rows, _: int) -> Rows:
        scores = np.full((len(rows), 3), np.nan, np.float32)
        if axes is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite give what is not, which becomes grey
                scores[:, : axes.shape[1]] = rows @ axes.astype(np.float32)
        return scores

    return colours_of_scores(np.concatenate([np.empty((0, 3), np.float32), *each(project, 0)]), aside)


def colours_of_scores(scores: Rows, aside: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Colours (n, 3) uint8 of (n, 3) components, each stretched between its 2nd and 98th percentile without rows `aside`; grey where one is not finite."""
    colours = np.full(scores.shape, 128, np.uint8)
    for component in range(scores.shape[1]):
        column = scores[:, component]
        good = np.isfinite(column)
        judged = good if aside is None else good & ~aside
        if judged.any():
            low, high = np.percentile(column[judged].astype(np.float64), [2, 98])
            spread = high - low if high - low > 1e-6 * max(abs(low), abs(high), 1e-6) else 1.0
            colours[good, component] = (np.clip((column[good] - low) / spread, 0, 1) * 255).astype(np.uint8)
    return colours


def principal_axes(blocks: Iterable[Rows], most: int = 3) -> NDArray[np.float64] | None:
    """The first `most` principal axes (d, <= most) of the rows (m, d) of all blocks that are finite; None for fewer than two."""
    return _axes(map(Moments.of, blocks), most)


@dataclass(frozen=True)
class Components:
    """The axes of largest variance, largest first; the largest loading of each is positive."""

    mean: NDArray[np.float64]
    """(d,) mean of the rows."""
    axes: NDArray[np.float64]
    """(d, k); fewer than were asked for where the rows have fewer dimensions, none for fewer than two rows."""

    def scores(self, rows: Rows, count: int) -> Rows:
        """(m, count) float32 of (m, d): components around the mean; NaN in rows that are not finite and for components that are missing."""
        scores = np.full((len(rows), count), np.nan, np.float32)
        good = np.isfinite(rows).all(axis=1)
        scores[good, : self.axes.shape[1]] = (rows[good] - self.mean) @ self.axes
        return scores


def principal_components(blocks: Iterable[Rows], most: int = 3) -> Components:
    """The first `most` principal components of the rows (m, d) of all blocks that are finite.

    Memory bound: a block of rows, and two matrices of (d, d) float64.
    """
    moments = functools.reduce(Moments.merge, map(Moments.of, blocks), Moments(0, np.zeros(1), np.zeros((1, 1))))
    axes = moments.axes(most)
    return Components(moments.mean, np.zeros((len(moments.mean), 0)) if axes is None else axes)


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter around it (d, d) of some rows."""

    count: int
    mean: NDArray[np.float64]
    scatter: Scatter

    @classmethod
    def of(cls, rows: Rows) -> Moments:
        """Those of the rows of a block that are finite, and whose squares are."""
        good = rows[(np.abs(rows) < LARGEST).all(axis=1)]
        mean = good.mean(axis=0, dtype=np.float64) if len(good) else np.zeros(rows.shape[1])
        away = good - mean.astype(np.float32)
        return cls(len(good), mean, (away.T @ away).astype(np.float64))

    def merge(self, other: Moments) -> Moments:
        """Those of both sets of rows (Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115)."""
        if not self.count:
            return other
        if not other.count:
            return self
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    def axes(self, most: int) -> NDArray[np.float64] | None:
        """The first `most` principal axes (d, <= most); None for fewer than two rows."""
        if self.count < 2:
            return None
        axes = _largest(self.scatter, min(most, len(self.mean)))
        return np.asarray(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]))


def _axes(parts: Iterable[Moments], most: int) -> NDArray[np.float64] | None:
    return functools.reduce(Moments.merge, parts, Moments(0, np.zeros(1), np.zeros((1, 1)))).axes(most)


def _largest(scatter: Scatter, count: int) -> Scatter:
    """Eigenvectors (d, count) of the largest eigenvalues, largest first."""
    import scipy.linalg

    dim = len(scatter)
    if count < dim and dim >= LANCZOS_FROM:
        from scipy.sparse.linalg import ArpackError, eigsh

        try:  # the start is fixed, so that the same rows give the same axes
            values, axes = eigsh(scatter, count, v0=np.random.default_rng(0).standard_normal(dim))
            return np.asarray(axes[:, np.argsort(values)[::-1]])
        except ArpackError:  # rows that are all the same, among others
            pass
    return np.asarray(scipy.linalg.eigh(scatter, subset_by_index=[dim - count, dim - 1])[1][:, ::-1])
