"""What a head's predictions of patients it never saw are worth: metrics with intervals, by fold, and beside what needs no head at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tilestream.fitting import metrics
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.targets import Task

ROUNDS = 1000
"""Draws of patients behind an interval."""

FEW = 30
"""Patients below which the intervals are said to be rough."""


UNDEFINED = {
    "classes": "what is tested lacks a class. Test patients of all classes.",
    "regression": "all values are equal.",
    "survival": "no fold holds two patients of whom one is known to have died first. Ask for fewer folds.",
}
"""Why the first metric of a task may have no value."""

Unit = Literal["patients", "regions"]


@dataclass(frozen=True)
class Predictions:
    """What was predicted of m samples (slides, or tiles), each by a head that saw nothing of its patient."""

    task: Task
    classes: tuple[str, ...]
    label: Ints
    """(m,) true class."""
    value: Floats
    """(m,) true number, or time."""
    died: NDArray[np.bool_]
    """(m,) whether the time is that of death."""
    scores: Floats
    """(m, C) probabilities; (m, 1) predicted number, or log of the risk."""
    fold: Ints
    """(m,)"""
    patient: Ints
    """(m,) number of the sample's patient, 0 to p - 1."""
    unit: Unit = "patients"
    """What `patient` numbers: where all are of one, the regions that were drawn."""

    @cached_property
    def _ranks(self) -> list[metrics.Ranks]:
        """Of the scores of each class."""
        return [metrics.rank(score) for score in self.scores.T]

    @property
    def fewest(self) -> int:
        """Patients of the rarest class that there is; those who died, or all, where there are no classes."""
        if self.task == "classes":
            return min(len(np.unique(self.patient[self.label == label])) for label in np.unique(self.label))
        return len(np.unique(self.patient[self.died] if self.task == "survival" else self.patient))

    def measure(self, weight: Floats) -> dict[str, float]:
        """Metrics by name, the one that is reported first in front."""
        if self.task == "survival":
            return {"c_index": metrics.c_index(self.value, self.died, self.scores[:, 0], weight, self.fold)}
        if self.task == "regression":
            return {
                "r2": metrics.r_squared(self.value, self.scores[:, 0], weight),
                "mean_absolute_error": metrics.mean_absolute_error(self.value, self.scores[:, 0], weight),
            }
        table = metrics.confusion(self.label, self.scores.argmax(axis=1), len(self.classes), weight)
        return {
            "auroc": metrics.macro(metrics.auroc, self.label, self.scores, weight, self._ranks),
            "auprc": metrics.macro(metrics.average_precision, self.label, self.scores, weight, self._ranks),
            "accuracy": metrics.accuracy(table),
            "balanced_accuracy": metrics.balanced_accuracy(table),
            "f1": metrics.f1_macro(table),
            "kappa": metrics.cohen_kappa(table),
            "quadratic_kappa": metrics.cohen_kappa(table, quadratic=True),
            "calibration_error": metrics.calibration_error(self.label, self.scores, weight),
        }

    def of(self, which: NDArray[np.bool_]) -> Predictions:
        """Those of some samples."""
        _, patient = np.unique(self.patient[which], return_inverse=True)
        parts = (array[which] for array in (self.label, self.value, self.died, self.scores, self.fold))
        return Predictions(self.task, self.classes, *parts, patient, self.unit)  # type: ignore[call-arg,arg-type]


@dataclass(frozen=True)
class Metric:
    """A metric with its 95 % interval over patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Evaluation:
    """How good a head is, and what was compared."""

    metrics: dict[str, Metric]
    by_fold: list[dict[str, float]]
    baselines: dict[str, dict[str, Metric]]
    """The same metrics of what needs no embeddings, by its name."""
    confusion: list[list[int]]
    """Samples by true class (rows) and predicted class."""
    patients: int
    samples: int
    notes: tuple[str, ...]
    """What is to be said of these numbers aloud."""


LOWEST = {"r2": -np.inf, "kappa": -1.0, "quadratic_kappa": -1.0}
"""Least value that a metric can have, where it is not 0."""

HIGHEST = {"mean_absolute_error": np.inf}
"""Greatest value that a metric can have, where it is not 1."""


def with_intervals(predictions: Predictions, seed: int) -> dict[str, Metric]:
    """Every metric with its interval: percentiles of a bootstrap over patients, moved away from the value by `widening`.

    Where all draws have the best value that there is, or the worst, they say nothing of how far the truth may be: the interval then reaches
    `unseen(n)` of the metric's range towards its inside, for n patients of the rarest class (or who died).
    """
    ones = np.ones(len(predictions.label))
    intervals = metrics.bootstrap(predictions.measure, predictions.patient, ROUNDS, seed)
    wider = widening(int(predictions.fold.max()) + 1)
    found = {}
    for name, value in predictions.measure(ones).items():
        low, high = (value + wider * (end - value) for end in intervals[name])
        lowest, highest = LOWEST.get(name, 0.0), HIGHEST.get(name, 1.0)
        if low == high and value in (lowest, highest) and np.isfinite(highest - lowest):
            reach = unseen(predictions.fewest) * (highest - lowest)
            low, high = low - reach, high + reach
        found[name] = Metric(value, max(min(low, value), lowest), min(max(high, value), highest))
    return found


def unseen(n: int) -> float:
    """The share of exceptions that 95 % intervals must allow for where none was met in n trials (Clopper and Pearson 1934)."""
    return float(1 - 0.025 ** (1 / max(1, n)))


def widening(folds: int) -> float:
    """How much wider an interval is than that of patients whose predictions do not hang together.

    Heads of different folds learned from mostly the same patients, and each from those whom the others are tested on: the variance of their mean is
    larger by 1 + folds * tested / learned (Nadeau and Bengio 2003), where one head is tested it is not. Without this, the intervals of labels that
    were shuffled miss chance in 3 to 4 of 20 cohorts.
    """
    return math.sqrt(1 + folds / (folds - 1)) if folds > 1 else 1.0


def evaluate(predictions: Predictions, baselines: dict[str, Predictions], seed: int, notes: tuple[str, ...] = ()) -> Evaluation:
    """Metrics of held-out predictions, over all folds and by fold, and of each baseline."""
    ones: Callable[[Predictions], Floats] = lambda found: np.ones(len(found.label))  # noqa: E731
    by_fold = []
    for k in range(int(predictions.fold.max()) + 1):
        part = predictions.of(predictions.fold == k)
        by_fold.append({"samples": float(len(part.label)), **part.measure(ones(part))})
    patients = int(predictions.patient.max()) + 1
    told = list(notes)
    if patients < FEW:
        told.append(
            f"{patients} {predictions.unit} are few: intervals are rough, and the numbers may be far from those of new {predictions.unit}."
        )
    table: list[list[int]] = []
    if predictions.task == "classes":
        counts = metrics.confusion(predictions.label, predictions.scores.argmax(axis=1), len(predictions.classes), ones(predictions))
        table = [[int(cell) for cell in row] for row in counts]
    found = with_intervals(predictions, seed)
    first = next(iter(found))
    beside = {name: with_intervals(other, seed) for name, other in baselines.items()}
    if not math.isfinite(found[first].value):
        told.append(f"{first} has no value: {UNDEFINED[predictions.task]}")
    for name, other in beside.items():
        if found[first].value <= other[first].value:
            told.append(
                f"{first} is {found[first].value:.3f}, and {name} alone reaches {other[first].value:.3f}: the head adds nothing to it."
            )
    return Evaluation(found, by_fold, beside, table, patients, len(predictions.label), tuple(told))


def majority(predictions: Predictions, label: Ints, value: Floats, fold: Ints) -> Predictions:
    """What is predicted without looking: the shares of the classes, or the mean, of what each fold's head learned from; the same risk for all.

    `label`, `value` and `fold` (n,) are of all samples: where a table says what is tested, most are learned from only, with fold -1.
    """
    scores = np.zeros_like(predictions.scores)
    for k in range(int(predictions.fold.max()) + 1):
        train, test = fold != k, predictions.fold == k
        if predictions.task == "classes":
            scores[test] = np.bincount(label[train], minlength=len(predictions.classes)) / train.sum()
        elif predictions.task == "regression":
            scores[test] = value[train].mean()
    return replace(predictions, scores=scores)
