"""How heads of slides learn: a linear layer on the mean or the maximum of the tiles, or attention over bags of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilestream.errors import ConfigError
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.targets import Cases
from tilestream.fitting.training.bags import MOST, Bags, Prepare, some_of
from tilestream.fitting.training.inner import best_of, cross_entropy, keep_back, parts_in_turn, temperature
from tilestream.fitting.training.linear import Linear, cox_loss, fit_cox, fit_logistic, fit_ridge
from tilestream.fitting.training.tile_models import STRENGTHS, Best, choose_strength, settings_of
from tilestream.models.heads.bags import AttentionBag, Bag, BagRows, PooledBag, TransformerBag, stream_bags

SETTINGS: dict[str, dict[str, float]] = {
    "mean": {},
    "max": {},
    "abmil": {"hidden": 256, "gate": 128, "epochs": 40, "patience": 40, "learning_rate": 2e-3, "batch": 16},
    "transformer": {"width": 128, "depth": 2, "heads": 4, "latents": 8, "epochs": 40, "patience": 40, "learning_rate": 2e-3, "batch": 16},
}
"""Settings of each model and their defaults."""

_OWN = ("hidden", "gate", "width", "depth", "heads", "latents")
"""Settings that a module is built with."""

LEAST_STEPS = 8
"""Of an epoch: small cohorts are learned in smaller batches."""

DROPPED = 0.25
"""Share of the values of a bag that are left out while it is learned."""

HELD_FROM = 5
"""Epochs from which slides that are learned from are held in memory too: to read one whole costs as much as drawing a few bags of it."""

SLIDES_AT_ONCE = 64
"""Slides that are judged as one stream of blocks."""

SMOOTHING = 0.05
"""Of labels, while bags are learned."""


def train_slides(
    model: str,
    cases: Cases,
    train: NDArray[np.bool_],
    pooled: Floats | None,
    bags: Bags,
    args: Mapping[str, Any],
    seed: int,
) -> tuple[Bag, dict[str, Any]]:
    """Train a head of slides on some of the cases.

    Parameters
    ----------
    model : str
        One of `SETTINGS`.
    cases : Cases
        Slides and their labels.
    train : (n,) bool
        Which cases may be seen.
    pooled : (n, d), optional
        Mean or maximum of each slide, for those models.
    bags : Bags
        The slides' tiles; they are learned from on its device.
    args, seed
        Settings, and where drawing begins.

    Returns
    -------
    bag : Bag
        On the CPU. Its answers are calibrated logits, numbers in their own unit, or logs of risks.
    arguments : dict
        What it was built with beside d and outputs.
    """
    if model in ("mean", "max"):
        assert pooled is not None
        settings_of(model, args, SETTINGS)
        at = np.flatnonzero(train)
        found = _train_pooled(cases, at, pooled[at], seed)
        bag = PooledBag(pooled.shape[1], len(found.bias), model)
        bag.fc.load_state_dict({"weight": torch.as_tensor(found.weight), "bias": torch.as_tensor(found.bias)})
        return bag, {"pool": model}
    heads, own = train_together(model, [cases], train, bags, args, seed)
    return heads[0], own


def train_together(
    model: str, targets: Sequence[Cases], train: NDArray[np.bool_], bags: Bags, args: Mapping[str, Any], seed: int
) -> tuple[list[Bag], dict[str, Any]]:
    """Train heads of slides, one for each target, that share all layers but the last, `fc`.

    Parameters are those of `train_slides`; the targets are of the same slides, of which each may lack some labels.

    Returns
    -------
    bags : list of Bag
        On the CPU, each complete in itself, with answers as `train_slides` has them.
    arguments : dict
        What each was built with beside d and outputs.
    """
    settings = settings_of(model, args, SETTINGS)
    at = np.flatnonzero(train & np.logical_or.reduce([cases.known for cases in targets]))
    kept = keep_back(targets[0].group[at], _strata(targets, at), seed)
    own = {key: int(value) for key, value in settings.items() if key in _OWN}

    def make(outputs: int) -> Bag:
        kind: Any = AttentionBag if model == "abmil" else TransformerBag
        try:
            made: Bag = kind(bags.dim, outputs, **own, seed=seed)
        except ValueError as error:
            raise ConfigError(f"head.args: {error}.") from error
        return made

    widths = [len(cases.classes) or 1 for cases in targets]
    whole = _train_bag(make(sum(widths)), targets, at, kept, bags, settings, seed)
    layer, heads = _linear(whole.fc), []
    for weight, bias in zip(layer.weight.split(widths), layer.bias.split(widths), strict=True):
        heads.append(make(len(bias)))
        heads[-1].load_state_dict({**whole.state_dict(), "fc.weight": weight, "fc.bias": bias})
    return heads, own


def _strata(targets: Sequence[Cases], at: Ints) -> Ints:
    """(m,) what some cases are even over: their labels, of all targets together."""
    each = [cases.label[at] if cases.task == "classes" else cases.died[at] + 2 * ~cases.known[at] for cases in targets]
    found: Ints = each[0] if len(each) == 1 else np.unique(np.stack(each), axis=1, return_inverse=True)[1].ravel()
    return found


@torch.no_grad()
def predict_slides(bag: Bag, bags: Bags, which: Sequence[int]) -> Floats:
    """(n, outputs) answers for whole slides, block by block, where the bags are; the head is on the CPU afterwards."""
    answers = stream_slides(bag.to(bags.device), bags, which)
    bag.cpu()
    return answers.double().numpy()


def stream_slides(bag: Bag, bags: Bags, which: Sequence[int], prepare: Prepare | None = None) -> Tensor:
    """(n, outputs) answers for whole slides, on the CPU, so many slides at a time that their states are small."""
    parts = [which[start : start + SLIDES_AT_ONCE] for start in range(0, len(which), SLIDES_AT_ONCE)]
    return torch.cat(
        [torch.empty(0, bag.outputs), *(stream_bags(bag, len(part), partial(bags.whole, part, prepare)).cpu() for part in parts)]
    )


def _train_pooled(cases: Cases, at: Ints, x: Floats, seed: int) -> Linear:
    """A linear model of vectors (m, d) of slides, its penalty chosen by patients that were kept back, part after part."""
    if cases.task == "classes":
        strength, t = choose_strength(x, cases.label[at], cases.group[at], len(cases.classes), seed)
        model = fit_logistic(x, cases.label[at], len(cases.classes), strength)
        return Linear(model.weight / t, model.bias / t)
    value, died = cases.value[at], cases.died[at]
    every = np.ones(len(at), np.bool_)
    parts = parts_in_turn(cases.group[at], _strata([cases], at), seed)

    def fit(rows: NDArray[np.bool_], strength: float) -> Linear:
        if cases.task == "survival":
            return fit_cox(x[rows], value[rows], died[rows], strength)
        return fit_ridge(x[rows], value[rows], strength)

    def loss(strength: float) -> float:
        return sum(part_loss(kept, fit(~kept, strength).scores(x)[:, 0]) for kept in parts)

    def part_loss(kept: NDArray[np.bool_], scores: Floats) -> float:
        if cases.task == "regression":
            return float(((scores - value)[kept] ** 2).sum())
        # What those who were kept back add to the partial likelihood (Verweij and van Houwelingen 1993): a few of them among themselves would tell little.
        return lost(scores, every) - lost(scores, ~kept)

    def lost(scores: Floats, rows: NDArray[np.bool_]) -> float:
        return float(cox_loss(torch.as_tensor(scores[rows]), torch.as_tensor(value[rows]), torch.as_tensor(died[rows]))) * int(
            died[rows].sum()
        )

    if cases.task == "survival":
        parts = [kept for kept in parts if died[~kept].any()]
    return fit(every, best_of(STRENGTHS, loss) if parts else STRENGTHS[1])


def _train_bag(
    bag: Bag, targets: Sequence[Cases], at: Ints, kept: NDArray[np.bool_], bags: Bags, settings: Mapping[str, float], seed: int
) -> Bag:
    """AdamW on bags of some tiles; ended and chosen by whole slides of patients that were kept back."""
    chance = np.random.default_rng(seed)
    learned, judged = at[~kept], some_of(at[kept], MOST)
    learner = _Learner(bag.requires_grad_().to(bags.device), targets, bags, learned)
    batch, epochs = int(settings["batch"]), int(settings["epochs"])
    if targets[0].task != "survival":  # there, those of one batch are compared
        batch = max(1, min(batch, len(learned) // LEAST_STEPS))
    optimiser = torch.optim.AdamW(bag.parameters(), lr=settings["learning_rate"], weight_decay=0.05)
    best = Best(bag, int(settings["patience"]))
    bags.hold([*judged.tolist(), *(learned.tolist() if epochs >= HELD_FROM else ())])
    for _ in range(epochs):
        order = chance.permutation(learned)
        drawn = bags.draw(order.tolist(), chance, learner.dropped)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            loss = learner.loss(part, bag.forward_many([*islice(drawn, len(part))]))
            if loss is not None:
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(bag.parameters(), 1.0)
                optimiser.step()
        if len(judged) and best.waited_enough(learner.judge(judged)):
            break
    if len(judged):
        best.restore()
    bag.cpu().requires_grad_(requires_grad=False)
    learner.fold_in()
    layer = _linear(bag.fc)
    answers = predict_slides(bag, bags, judged.tolist()) if len(judged) and targets[0].task == "classes" else None
    for each in learner.parts:
        known = each.cases.known[judged]
        t = 1.0 if answers is None else temperature(answers[known, each.columns], each.cases.label[judged[known]])
        layer.weight[each.columns].mul_(each.unit / t)
        layer.bias[each.columns].mul_(each.unit / t).add_(each.level)
    if targets[0].task == "survival":
        # Cox's loss leaves the level open: 0 is the mean of those that were learned from, as in `fit_cox`, so that heads of several folds can be set side by side.
        layer.bias.sub_(torch.as_tensor(predict_slides(bag, bags, some_of(at, MOST).tolist()).mean(axis=0)))
    return bag


class _Part:
    """One target among those that a bag learns at once."""

    def __init__(self, cases: Cases, first: int, learned: Ints) -> None:
        self.cases, self.columns = cases, slice(first, first + (len(cases.classes) or 1))
        self.level, self.unit = 0.0, 1.0
        if cases.task == "regression":
            values = cases.value[learned[cases.known[learned]]]
            self.level, self.unit = float(values.mean()), float(values.std()) or 1.0

    def loss(self, part: Ints, all_answers: Tensor) -> Tensor | None:
        """Of the answers (b, outputs of all targets) of some cases; None where none of them tells anything."""
        cases, answers = self.cases, all_answers[:, self.columns]
        known = cases.known[part]
        if not known.all():
            answers, part = answers[_sent(np.flatnonzero(known), answers)], part[known]
        if not len(part):
            return None
        if cases.task == "classes":
            return nn.functional.cross_entropy(answers, _sent(cases.label[part], answers), label_smoothing=SMOOTHING)
        value = _sent(cases.value[part], answers)
        if cases.task == "regression":
            return nn.functional.mse_loss(answers[:, 0], ((value - self.level) / self.unit).to(answers.dtype))
        died = cases.died[part]
        return cox_loss(answers[:, 0], value, _sent(died, answers)) if died.any() else None


class _Learner:
    """A bag while it learns: from vectors that are standardised, numbers that are, or labels that are softened."""

    def __init__(self, bag: Bag, targets: Sequence[Cases], bags: Bags, learned: Ints) -> None:
        self.bag, self.bags = bag, bags
        self.mean, self.spread = (found.to(bags.device) for found in bags.statistics(learned))
        firsts = np.cumsum([0, *(len(cases.classes) or 1 for cases in targets)]).tolist()
        self.parts = [_Part(cases, first, learned) for cases, first in zip(targets, firsts, strict=False)]

    def standardised(self, rows: BagRows, chance: np.random.Generator) -> BagRows:
        """Rows whose channels have mean 0 and spread 1."""
        if rows.x.is_cuda:
            return replace(rows, x=(rows.x - self.mean) / self.spread)
        x = rows.x.numpy()  # not by torch, which would start threads of its own
        x -= self.mean.numpy()
        x /= self.spread.numpy()
        return rows

    def dropped(self, rows: BagRows, chance: np.random.Generator) -> BagRows:
        """Rows of which some values are 0, others raised for it (Srivastava et al. 2014): a few slides are not told by a few values."""
        given = self.standardised(rows, chance)
        if given.x.is_cuda:
            generator = torch.Generator(given.x.device).manual_seed(int(chance.integers(2**63)))
            kept = torch.rand(given.x.shape, generator=generator, device=given.x.device) >= DROPPED
            return replace(given, x=given.x * kept / (1 - DROPPED))
        x = given.x.numpy()
        left_out = np.frombuffer(chance.bytes(x.size), np.uint8).reshape(x.shape) < DROPPED * 256
        x *= np.where(left_out, np.float32(0), np.float32(1 / (1 - DROPPED)))
        return given

    def loss(self, part: Ints, answers: Tensor) -> Tensor | None:
        """The sum over targets for the answers (b, outputs) of some cases; None where none of them tells anything, as where nobody died."""
        found = [loss for each in self.parts if (loss := each.loss(part, answers)) is not None]
        return sum(found[1:], found[0]) if found else None

    @torch.no_grad()
    def judge(self, judged: Ints) -> float:
        """The loss on whole slides."""
        answers = stream_slides(self.bag, self.bags, judged.tolist(), self.standardised)
        if self.parts[0].cases.task == "classes":
            known = [(each, each.cases.known[judged]) for each in self.parts]
            return sum(
                cross_entropy(answers[has, each.columns].double().numpy(), each.cases.label[judged[has]])
                for each, has in known
                if has.any()
            )
        loss = self.loss(judged, answers.double())
        return 0.0 if loss is None else float(loss)

    def fold_in(self) -> None:
        """Let the first layer take vectors as they are stored, not standardised."""
        layer = _linear(self.bag.embed)
        layer.weight.div_(self.spread.cpu())
        layer.bias.sub_(layer.weight @ self.mean.cpu())


def _sent(array: NDArray[Any], to: Tensor) -> Tensor:
    """An array where `to` is; nobody waits for the device."""
    made = torch.from_numpy(np.ascontiguousarray(array))
    return made.pin_memory().to(to.device, non_blocking=True) if to.is_cuda else made


def _linear(layer: object) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer
