"""How good predictions are, with weights, so that a bootstrap over patients is a matter of counts.

Every function takes `weight` (n,) float64, how often each sample counts, and is NaN where it is not defined, as AUROC is of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15
"""Bins of the calibration error."""


Ranks = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Samples in the order of their scores, and where each score begins among them: what does not change from one weighting to the next."""


def rank(score: Floats) -> Ranks:
    """The ranks of scores."""
    order = np.argsort(score, kind="stable")
    return order, np.unique(score[order], return_index=True)[1]


def auroc(positive: NDArray[np.bool_], score: Floats, weight: Floats, ranks: Ranks | None = None) -> float:
    """Probability that a positive sample scores higher than a negative one, ties counting half (Hanley and McNeil 1982)."""
    order, first = ranks or rank(score)
    wins = np.add.reduceat(np.where(positive, weight, 0.0)[order], first)
    losses = np.add.reduceat(np.where(positive, 0.0, weight)[order], first)
    pairs = wins.sum() * losses.sum()
    below = np.cumsum(losses) - losses
    return float((wins * (below + losses / 2)).sum() / pairs) if pairs > 0 else np.nan


def average_precision(positive: NDArray[np.bool_], score: Floats, weight: Floats, ranks: Ranks | None = None) -> float:
    """Area under precision over recall as a sum of steps: the precision at each threshold times the recall that it adds."""
    order, first = ranks or rank(score)
    hits = np.add.reduceat(np.where(positive, weight, 0.0)[order], first)[::-1]
    taken = np.cumsum(np.add.reduceat(weight[order], first)[::-1])
    total = hits.sum()
    if total == 0:
        return np.nan
    precision = np.divide(np.cumsum(hits), taken, out=np.zeros_like(taken), where=taken > 0)
    return float((precision * hits).sum() / total)


def macro(metric: Callable[..., float], truth: Ints, probability: Floats, weight: Floats, ranks: Sequence[Ranks] | None = None) -> float:
    """A metric of two classes, for several: the mean over the classes, each against all others; of two classes, that of the second."""
    classes = range(1, 2) if probability.shape[1] == 2 else range(probability.shape[1])
    return float(np.mean([metric(truth == k, probability[:, k], weight, ranks[k] if ranks else None) for k in classes]))


def confusion(truth: Ints, predicted: Ints, classes: int, weight: Floats) -> Floats:
    """(classes, classes) weights by true class (rows) and predicted class (columns)."""
    table = np.bincount(truth * classes + predicted, weights=weight, minlength=classes * classes)
    return table.astype(np.float64).reshape(classes, classes)


def accuracy(table: Floats) -> float:
    """Share of samples on the diagonal of a confusion table."""
    return float(np.trace(table) / table.sum()) if table.sum() else np.nan


def balanced_accuracy(table: Floats) -> float:
    """Mean over the classes that there are of the share that was found."""
    there = table.sum(axis=1) > 0
    return float(np.mean(np.diag(table)[there] / table.sum(axis=1)[there])) if there.any() else np.nan


def f1_macro(table: Floats) -> float:
    """Mean over the classes that are there or were predicted of 2 true / (2 true + false positive + false negative)."""
    both = table.sum(axis=0) + table.sum(axis=1)
    return float(np.mean(2 * np.diag(table)[both > 0] / both[both > 0])) if both.any() else np.nan


def cohen_kappa(table: Floats, *, quadratic: bool = False) -> float:
    """Agreement beyond chance (Cohen 1960); `quadratic` weighs a disagreement by the square of its distance, for ordered classes."""
    places = np.arange(len(table))
    cost = (places[:, None] - places) ** 2 if quadratic else (places[:, None] != places).astype(np.float64)
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1e-300)
    expected = float((cost * by_chance).sum())
    return 1 - float((cost * table).sum()) / expected if expected > 0 else np.nan


def calibration_error(truth: Ints, probability: Floats, weight: Floats) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over `BINS` equal bins of the confidence (Guo et al. 2017)."""
    sure, hit = probability.max(axis=1), probability.argmax(axis=1) == truth
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, weights=weight * (hit - sure), minlength=BINS)
    return float(np.abs(gap).sum() / weight.sum())


def c_index(time: Floats, died: NDArray[np.bool_], risk: Floats, weight: Floats, head: Ints | None = None) -> float:
    """Harrell's concordance: of the pairs in which one is known to have died first, the share in which it had the higher risk; ties count half.

    With `head` (n,), which head told each risk, pairs are of one head only: risks have no unit, and those of two heads cannot be compared.
    """
    right = pairs = 0.0
    for i in np.flatnonzero(died & (weight > 0)):
        later = (time > time[i]) | ((time == time[i]) & ~died)
        if head is not None:
            later &= head == head[i]
        mass = weight[later] * weight[i]
        right += float((mass * ((risk[later] < risk[i]) + 0.5 * (risk[later] == risk[i]))).sum())
        pairs += float(mass.sum())
    return right / pairs if pairs else np.nan


def r_squared(truth: Floats, predicted: Floats, weight: Floats) -> float:
    """1 less the squared errors over those of the mean."""
    mean = np.average(truth, weights=weight)
    spread = float((weight * (truth - mean) ** 2).sum())
    return 1 - float((weight * (truth - predicted) ** 2).sum()) / spread if spread > 0 else np.nan


def mean_absolute_error(truth: Floats, predicted: Floats, weight: Floats) -> float:
    """Mean distance, in the unit of the target."""
    return float(np.average(np.abs(truth - predicted), weights=weight))


def bootstrap(
    measure: Callable[[Floats], dict[str, float]], patients: Ints, rounds: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of measures: percentiles over draws of patients with replacement; a patient's samples come together.

    Parameters
    ----------
    measure : callable
        Measures by name, for weights (n,).
    patients : (n,) int
        The patient of each sample, 0 to p - 1.
    rounds, seed : int
        Draws, and where they begin.

    Returns
    -------
    dict of str to (low, high)
        NaN where fewer than half of the draws have a value.
    """
    chance, people = np.random.default_rng(seed), int(patients.max()) + 1
    draws: dict[str, list[float]] = {}
    for _ in range(rounds):
        times = np.bincount(chance.integers(people, size=people), minlength=people).astype(np.float64)
        for name, value in measure(times[patients]).items():
            draws.setdefault(name, []).append(value)
    return {name: _percentiles(np.asarray(values)) for name, values in draws.items()}


def _percentiles(values: Floats) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def kaplan_meier(time: Floats, died: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Times of deaths, and the share that outlives each (Kaplan and Meier 1958)."""
    at = np.unique(time[died])
    deaths = np.array([(died & (time == t)).sum() for t in at], np.float64)
    at_risk = np.array([(time >= t).sum() for t in at], np.float64)
    return at, np.cumprod(1 - deaths / at_risk, dtype=np.float64)
