"""What is set by training patients that are kept back: when to stop by one part of them; a penalty, and what is quickly learned, by one part after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.splits import draw_folds

PARTS = 4
"""One part of as many is kept back."""

MOST_PARTS = 8
"""Parts that are kept back one after another, at most."""

ENOUGH = 64
"""Patients by whom a setting is judged; more parts than hold as many tell little."""

T = TypeVar("T")


def keep_back(patients: Ints, strata: Ints, seed: int) -> NDArray[np.bool_]:
    """(n,) which samples are kept back: about a quarter of the patients, of every stratum where that can be; none where there are too few."""
    return next(_parts(patients, strata, PARTS, seed), np.zeros(len(patients), np.bool_))


def parts_in_turn(patients: Ints, strata: Ints, seed: int) -> list[NDArray[np.bool_]]:
    """(n,) which samples are kept back, part after part: no patient in two, all of them where they are few, else `ENOUGH` or one part more.

    One part of a few patients would choose by chance: of ten slides a quarter is two. Empty where nothing can be kept back.
    """
    found: list[NDArray[np.bool_]] = []
    judged = 0
    for kept in _parts(patients, strata, MOST_PARTS, seed):
        if judged < ENOUGH and kept.any():
            found.append(kept)
            judged += len(np.unique(patients[kept]))
    return found


def _parts(patients: Ints, strata: Ints, most: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """(n,) the samples of each part of the patients; but for those of a stratum that would have none left, for what is learned must have every class."""
    _, group = np.unique(patients, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        return
    fold = draw_folds(group, strata - strata.min(), min(most, count), seed)
    for k in range(int(fold.max()) + 1):
        kept = fold == k
        alone = [stratum for stratum in np.unique(strata).tolist() if not (strata[~kept] == stratum).any()]
        yield kept & ~np.isin(strata, alone)


def temperature(scores: Floats, label: Ints) -> float:
    """The t of least cross entropy of softmax(scores / t) (Guo et al. 2017), within 0.05 to 20; 1 where there is nothing to judge by."""
    if len(label) == 0 or len(np.unique(label)) < 2:
        return 1.0
    from scipy.optimize import minimize_scalar

    logits, target = torch.as_tensor(scores), torch.as_tensor(label)

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / float(np.exp(log_t)), target))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def cross_entropy(scores: Floats, label: Ints) -> float:
    """Mean cross entropy of scores (n, C)."""
    return float(torch.nn.functional.cross_entropy(torch.as_tensor(scores), torch.as_tensor(label)))


def best_of(settings: Sequence[T], loss: Callable[[T], float]) -> T:
    """The setting of least loss; of equals the first."""
    losses = [loss(setting) for setting in settings]
    return settings[int(np.argmin(losses))]


def softmax(scores: Floats) -> Floats:
    """(n, C) probabilities of scores."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found
