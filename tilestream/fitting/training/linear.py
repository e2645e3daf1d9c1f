"""Linear models by their own optimum: logistic regression, ridge and Cox, each found to the last digits, so that a seed does not matter.

All in float64. Features are standardised inside and the answer is told for the features as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEPS = 500
"""Steps of L-BFGS at most; a few dozen are usual."""

TOLERANCE = 1e-9
"""Largest entry of the gradient of the mean loss at the optimum."""


@dataclass(frozen=True)
class Linear:
    """Scores `x @ weight.T + bias`."""

    weight: Floats
    """(outputs, d)"""
    bias: Floats
    """(outputs,)"""

    def scores(self, x: NDArray[np.floating]) -> Floats:
        """(n, outputs) of features (n, d)."""
        found: Floats = x.astype(np.float64) @ self.weight.T + self.bias
        return found


def fit_logistic(x: NDArray[np.floating], label: Ints, classes: int, strength: float, weight: Floats | None = None) -> Linear:
    """Multinomial logistic regression: least mean cross entropy + ||w||² / (2 n strength), biases free.

    `strength` is the C of scikit-learn where features are standardised before; large values bind less. With two classes as with more, each has
    its own weights, as softmax wants them.

    Parameters
    ----------
    x : (n, d)
        Features.
    label : (n,)
        Class of each.
    classes : int
        Number of classes.
    strength : float
        Inverse of the penalty.
    weight : (n,), optional
        How often each sample counts; equal by default.
    """
    scaled, mean, spread = _standardised(x)
    target = torch.as_tensor(label)
    share = torch.as_tensor(np.ones(len(x)) if weight is None else weight)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        each = torch.nn.functional.cross_entropy(scaled @ w.T + b, target, reduction="none")
        return (share * each).sum() / share.sum()

    return _unscaled(*_minimise(loss, classes, x.shape[1], 1 / (strength * float(share.sum()))), mean, spread)


def fit_ridge(x: NDArray[np.floating], value: Floats, strength: float) -> Linear:
    """Least mean squared error / 2 + ||w||² / (2 n strength), bias free; in closed form."""
    scaled, mean, spread = _standardised(x)
    data, level = scaled.numpy(), value.mean()
    if len(data) >= data.shape[1]:
        solved = np.linalg.solve(data.T @ data + np.eye(data.shape[1]) / strength, data.T @ (value - level))
    else:  # the same by the smaller system
        solved = data.T @ np.linalg.solve(data @ data.T + np.eye(len(data)) / strength, value - level)
    return _unscaled(solved[None], np.array([level]), mean, spread)


def fit_cox(x: NDArray[np.floating], time: Floats, died: NDArray[np.bool_], strength: float) -> Linear:
    """Proportional hazards (Cox 1972; ties as Breslow 1974): least `cox_loss` + ||w||² / (2 deaths strength). Its score is the log of the risk."""
    scaled, mean, spread = _standardised(x)
    times, deaths = torch.as_tensor(time), torch.as_tensor(died)
    w, _ = _minimise(
        lambda w, b: cox_loss((scaled @ w.T + b * 0)[:, 0], times, deaths), 1, x.shape[1], 1 / (strength * max(1, int(died.sum())))
    )
    return _unscaled(w, np.zeros(1), mean, spread)


def cox_loss(risk: Tensor, time: Tensor, died: Tensor) -> Tensor:
    """Mean over the deaths of -(risk - log of the sum of exp(risk) over all who live as long), ties as Breslow has them."""
    order = torch.argsort(time, descending=True, stable=True)
    ordered = time[order]
    total = torch.logcumsumexp(risk[order], dim=0)
    # All of one time are at risk together: the sum that ends with the last of them.
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1
    return -(risk[order] - total[last])[died[order]].mean()


def _standardised(x: NDArray[np.floating]) -> tuple[Tensor, Floats, Floats]:
    """(n, d) float64 features of mean 0 and spread 1, and what was taken off and divided by; constant features stay 0."""
    mean = x.mean(axis=0, dtype=np.float64)
    spread = x.std(axis=0, dtype=np.float64)
    spread = np.where(spread > 1e-12 * np.maximum(1, np.abs(mean)), spread, np.inf)
    return torch.as_tensor((x.astype(np.float64) - mean) / spread), mean, spread


def _unscaled(w: Floats, b: Floats, mean: Floats, spread: Floats) -> Linear:
    weight = w / spread
    return Linear(weight, b - weight @ mean)


def _minimise(loss: Callable[[Tensor, Tensor], Tensor], outputs: int, dim: int, penalty: float) -> tuple[Floats, Floats]:
    """Weights (outputs, dim) and biases (outputs,) of the least loss + penalty / 2 ||w||²."""
    w, b = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((outputs, dim), (outputs,)))
    optimiser = torch.optim.LBFGS([w, b], max_iter=STEPS, max_eval=2 * STEPS, tolerance_grad=TOLERANCE, tolerance_change=0.0,
                                  history_size=20, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(w, b) + penalty / 2 * (w**2).sum()
        value.backward()
        return value

    optimiser.step(closure)
    return w.detach().numpy(), b.detach().numpy()
