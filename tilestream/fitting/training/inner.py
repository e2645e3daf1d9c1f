"""What is set by a part of the training patients that is kept back: the strength of a penalty, when to stop, the temperature of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.splits import draw_folds

PARTS = 4
"""One part of as many is kept back."""

T = TypeVar("T")


def keep_back(patients: Ints, strata: Ints, seed: int) -> NDArray[np.bool_]:
    """(n,) which samples are kept back: about a quarter of the patients, of every stratum where that can be; none where there are too few."""
    _, group = np.unique(patients, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        return np.zeros(len(patients), np.bool_)
    fold = draw_folds(group, strata - strata.min(), min(PARTS, count), seed)
    kept = fold == 0
    # What is learned must have every class.
    alone = [k for k in np.unique(strata).tolist() if not (strata[~kept] == k).any()]
    found: NDArray[np.bool_] = kept & ~np.isin(strata, alone)
    return found


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
