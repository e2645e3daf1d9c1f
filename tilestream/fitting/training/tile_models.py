"""How heads of single tiles learn: from vectors and classes to the modules that answer for each row alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilestream.errors import ConfigError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.training.inner import best_of, cross_entropy, keep_back, parts_in_turn, temperature
from tilestream.fitting.training.linear import Linear, fit_logistic
from tilestream.models.heads.rows import LinearHead, MLPHead, NearestHead, PrototypeHead, unit_rows

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties of logistic regression that are tried, from the most bound one, which wins among equals."""

INNER_ROWS = 20_000
"""Rows of which the strength is chosen at most, over all parts that are kept back in turn."""

MOST_EXAMPLES = 20_000
"""Tiles that a nearest-neighbour head holds at most."""

SETTINGS: dict[str, dict[str, float]] = {
    "linear": {},
    "mlp": {"hidden": 256, "epochs": 60, "patience": 8, "learning_rate": 1e-3},
    "knn": {"k": 20, "temperature": 0.07},
    "prototypes": {},
}
"""Settings of each model and their defaults."""

BATCH = 1024


def settings_of(model: str, args: Mapping[str, Any], known: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The settings of a model, defaults filled in.

    Raises
    ------
    ConfigError
        It has no such setting, or a value is no number above 0, or no whole one where things are counted.
    """
    defaults = known[model]
    for key, value in args.items():
        if key not in defaults:
            raise ConfigError(f"head.args.{key}: {model} has no such setting; it has {', '.join(defaults) or 'none'}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"head.args.{key}: {value!r}, but it must be a number above 0.")
        if not math.isfinite(value) or (isinstance(defaults[key], int) and value != int(value)):
            raise ConfigError(
                f"head.args.{key}: {value!r}, but it must be a {'whole' if isinstance(defaults[key], int) else 'finite'} number."
            )
    return {**defaults, **{key: type(defaults[key])(value) for key, value in args.items()}}


def train_tiles(
    model: str, x: NDArray[np.float32], label: Ints, patients: Ints, classes: int, args: Mapping[str, Any], seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a head of tiles; softmax of its logits is calibrated on patients that were kept back, but for the votes of knn.

    Parameters
    ----------
    model : str
        One of `SETTINGS`.
    x, label, patients : (m, d), (m,), (m,)
        Vectors, classes, and what may be kept back together.
    classes : int
        Number of classes.
    args : mapping
        Settings.
    seed : int
        Of what is drawn.

    Returns
    -------
    module : nn.Module
        (n, d) to (n, classes), float32.
    arguments : dict
        What it was built with beside d and classes.
    """
    settings = settings_of(model, args, SETTINGS)
    if model == "linear":
        return linear_head(_train_linear(x, label, patients, classes, seed)), {}
    if model == "knn":
        return _knn(x, label, classes, settings, seed)
    kept = keep_back(patients, label, seed)
    if model == "prototypes":
        return _train_prototypes(x, label, kept, classes)
    return _train_mlp(x, label, kept, classes, settings, seed)


@torch.no_grad()
def scores_of(module: nn.Module, x: NDArray[np.floating]) -> Floats:
    """(n, C) float64 logits of vectors (n, d)."""
    parts = [module(torch.as_tensor(np.ascontiguousarray(x[start : start + BATCH], np.float32))) for start in range(0, len(x), BATCH)]
    found: Floats = torch.cat(parts).double().numpy()
    return found


def linear_head(model: Linear) -> LinearHead:
    """The module of a linear model."""
    head = LinearHead(model.weight.shape[1], len(model.bias))
    head.load_state_dict({"fc.weight": torch.as_tensor(model.weight), "fc.bias": torch.as_tensor(model.bias)})
    return head


def choose_strength(x: NDArray[np.floating], label: Ints, patients: Ints, classes: int, seed: int) -> tuple[float, float]:
    """The penalty's inverse that predicts best the patients that were kept back, part after part, and the temperature of its probabilities there."""
    parts = parts_in_turn(patients, label, seed)
    if not parts:
        return STRENGTHS[-2], 1.0
    chance, most = np.random.default_rng(seed), INNER_ROWS // len(parts)
    learned = [np.sort(chance.permutation(np.flatnonzero(~kept))[:most]) for kept in parts]
    truth = np.concatenate([label[kept] for kept in parts])
    tried: dict[float, Floats] = {}

    def loss(strength: float) -> float:
        models = (fit_logistic(x[few], label[few], classes, strength) for few in learned)
        tried[strength] = np.concatenate([model.scores(x[kept]) for model, kept in zip(models, parts, strict=True)])
        return cross_entropy(tried[strength], truth)

    strength = best_of(STRENGTHS, loss)
    return strength, temperature(tried[strength], truth)


def _train_linear(x: NDArray[np.float32], label: Ints, patients: Ints, classes: int, seed: int) -> Linear:
    strength, t = choose_strength(x, label, patients, classes, seed)
    model = fit_logistic(x, label, classes, strength)
    return Linear(model.weight / t, model.bias / t)


def _train_prototypes(x: NDArray[np.float32], label: Ints, kept: NDArray[np.bool_], classes: int) -> tuple[PrototypeHead, dict[str, Any]]:
    t = temperature(scores_of(_prototypes(x[~kept], label[~kept], classes, 1.0), x[kept]), label[kept]) if kept.any() else 0.1
    return _prototypes(x, label, classes, t), {"temperature": t}


def _prototypes(x: NDArray[np.float32], label: Ints, classes: int, t: float) -> PrototypeHead:
    centre = torch.as_tensor(x.mean(axis=0, dtype=np.float64))
    unit = unit_rows(torch.as_tensor(x) - centre)
    target = torch.as_tensor(label)
    means = [unit[target == k].mean(dim=0) if bool((target == k).any()) else torch.zeros_like(centre) for k in range(classes)]
    head = PrototypeHead(x.shape[1], classes, t)
    head.load_state_dict({"centre": centre, "prototypes": torch.stack(means)})
    return head


def _knn(x: NDArray[np.float32], label: Ints, classes: int, settings: Mapping[str, float], seed: int) -> tuple[NearestHead, dict[str, Any]]:
    some = np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST_EXAMPLES])
    arguments: dict[str, Any] = {"examples": len(some), "k": int(settings["k"]), "temperature": settings["temperature"]}
    head = NearestHead(x.shape[1], classes, **arguments)
    head.load_state_dict({"rows": torch.as_tensor(x[some]), "labels": torch.as_tensor(label[some])})
    return head, arguments


def _train_mlp(
    x: NDArray[np.float32], label: Ints, kept: NDArray[np.bool_], classes: int, settings: Mapping[str, float], seed: int
) -> tuple[MLPHead, dict[str, Any]]:
    """AdamW on standardised vectors, ended where patients that were kept back are predicted worse; then the epoch that was best."""
    generator = torch.Generator().manual_seed(seed)
    mean, spread = x[~kept].mean(axis=0), x[~kept].std(axis=0) + 1e-6
    hidden = int(settings["hidden"])
    net = MLPHead(x.shape[1], classes, hidden, seed).requires_grad_()
    data, target = torch.as_tensor((x - mean) / spread), torch.as_tensor(label)
    held = torch.as_tensor(kept)
    rows = torch.as_tensor(np.flatnonzero(~kept))
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings["learning_rate"], weight_decay=0.05)
    best = Best(net, int(settings["patience"]))
    for _ in range(int(settings["epochs"])):
        for part in rows[torch.randperm(len(rows), generator=generator)].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data[part]), target[part], label_smoothing=0.02).backward()
            optimiser.step()
        if kept.any():
            with torch.no_grad():
                if best.waited_enough(float(nn.functional.cross_entropy(net(data[held]), target[held]))):
                    break
    if kept.any():
        best.restore()
    with torch.no_grad():
        t = temperature(net(data[held]).double().numpy(), label[kept]) if kept.any() else 1.0
        # Vectors come as they are stored.
        net.fc1.weight.div_(torch.as_tensor(spread))
        net.fc1.bias.sub_(net.fc1.weight @ torch.as_tensor(mean))
        net.fc2.weight.div_(t)
        net.fc2.bias.div_(t)
    return net.requires_grad_(requires_grad=False), {"hidden": hidden}


class Best:
    """The weights of the epoch that was best on what was kept back."""

    def __init__(self, net: nn.Module, patience: int) -> None:
        self.net, self.patience, self.loss, self.waited = net, patience, float("inf"), 0
        self.state: dict[str, Tensor] = {key: value.clone() for key, value in net.state_dict().items()}

    def waited_enough(self, loss: float) -> bool:
        """Hear of an epoch; whether `patience` epochs have not been better."""
        self.waited += 1
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.state = {key: value.clone() for key, value in self.net.state_dict().items()}
        return self.waited >= self.patience

    def restore(self) -> None:
        """Give the net the weights of the best epoch."""
        self.net.load_state_dict(self.state)
