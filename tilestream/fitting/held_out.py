"""What is predicted of each sample by a head that saw nothing of its patient, and the head that saw all: of tiles, and of slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilestream.config.fit_schema import FitConfig
from tilestream.errors import InputError
from tilestream.fitting.colour import read_colours
from tilestream.fitting.evaluate import Predictions, Unit, majority
from tilestream.fitting.memory import most_drawn
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.splits import draw_folds
from tilestream.fitting.targets import Cases
from tilestream.fitting.tile_labels import label_tiles, number_regions
from tilestream.fitting.training.bags import Bags
from tilestream.fitting.training.features import Drawn, pool_slides, read_drawn
from tilestream.fitting.training.inner import softmax
from tilestream.fitting.training.linear import fit_cox, fit_logistic, fit_ridge
from tilestream.fitting.training.slide_models import predict_slides, train_slides, train_together
from tilestream.fitting.training.tile_models import scores_of, train_tiles
from tilestream.models.heads.bags import Bag, BagRows, bag_attention, stream_bag
from tilestream.store.cohort import some


class Tiles:
    """Heads of tiles."""

    def __init__(self, config: FitConfig, cases: Cases) -> None:
        self.config = config
        self.cases, labels = label_tiles(config, cases)
        dim = int(self.cases.slides[0].vectors(config.head.input).shape[1])
        self.drawn: Drawn = read_drawn(
            self.cases.slides, config.head.input, labels, len(self.cases.classes), most_drawn(config, dim), config.split.seed
        )
        self.unit: Unit = "patients"
        self.group: Ints = self.cases.group[self.drawn.case]
        self.fold: Ints = self.cases.fold[self.drawn.case]
        if (self.cases.label < 0).all() and len(set(self.cases.group.tolist())) == 1:
            self._hold_out_regions()
        tested = self.fold >= 0
        self.case: Ints = self.drawn.case[tested]
        self.row: Ints | None = self.drawn.row[tested]
        _check_tiles(self.drawn, self.fold, self.cases.classes, self.unit)

    def _hold_out_regions(self) -> None:
        """Of one patient, hold out regions: tiles of one class that touch."""
        self.unit = "regions"
        self.group = number_regions(self.cases.slides, self.drawn.case, self.drawn.row, self.drawn.label)
        regions = [len(set(self.group[self.drawn.label == k].tolist())) for k in range(len(self.cases.classes))]
        alone = [name for name, count in zip(self.cases.classes, regions, strict=True) if count == 1]
        if alone:
            raise InputError(
                f"all labels are on slides of one patient, and the class {alone[0]!r} is one region: nothing is left to judge it by. "
                "Draw another region of it that does not touch the first, or draw on slides of other patients."
            )
        self.fold = draw_folds(self.group, self.drawn.label, min(self.config.split.folds, *filter(None, regions)), self.config.split.seed)

    def train_all(self) -> tuple[nn.Module, str, dict[str, Any]]:
        """A head of all drawn tiles, the name of its model in a file, and its arguments."""
        return self._train(np.ones(len(self.drawn.x), np.bool_))

    def _train(self, rows: NDArray[np.bool_]) -> tuple[nn.Module, str, dict[str, Any]]:
        head, drawn = self.config.head, self.drawn
        module, arguments = train_tiles(
            head.model, drawn.x[rows], drawn.label[rows], self.group[rows], len(self.cases.classes), head.args, self.config.split.seed
        )
        return module, head.model, arguments

    def predict_held_out(self) -> Predictions:
        """Probabilities of each drawn tile, by a head that saw nothing of its patient."""
        scores = np.full((len(self.drawn.x), len(self.cases.classes)), np.nan)
        for k in range(int(self.fold.max()) + 1):
            module, _, _ = self._train(self.fold != k)
            scores[self.fold == k] = softmax(scores_of(module, self.drawn.x[self.fold == k]))
        tested = self.fold >= 0
        nothing = np.full(len(self.case), np.nan)
        return Predictions(
            "classes", self.cases.classes, self.drawn.label[tested], nothing, np.zeros(len(self.case), np.bool_), scores[tested], self.fold[tested],
            np.unique(self.cases.patient[self.case] if self.unit == "patients" else self.group[tested], return_inverse=True)[1], self.unit,
        )  # fmt: skip

    def by_majority(self, predictions: Predictions) -> Predictions:
        """The same without looking at anything."""
        return majority(predictions, self.drawn.label, np.full(len(self.fold), np.nan), self.fold)

    def by_colour(self, predictions: Predictions) -> dict[str, Predictions]:
        """The same by logistic regression on the colours of the thumbnail."""
        colours = [read_colours(slide, self.drawn.row[self.drawn.case == i]) for i, slide in enumerate(self.cases.slides)]
        if any(found is None for found in colours):
            return {}
        x = np.concatenate([found for found in colours if found is not None])
        scores = np.full_like(predictions.scores, np.nan, shape=(len(x), predictions.scores.shape[1]))
        for k in range(int(self.fold.max()) + 1):
            train, test = self.fold != k, self.fold == k
            scores[test] = softmax(fit_logistic(x[train], self.drawn.label[train], len(self.cases.classes), 1.0).scores(x[test]))
        return {"colour": _with_scores(predictions, scores[self.fold >= 0])}


class Shared:
    """Heads of several columns that share their layers: each fold's are learned once, for whichever column asks first."""

    def __init__(self, config: FitConfig, targets: Sequence[Cases]) -> None:
        self.config, self.targets = config, targets
        self.bags = open_bags(config, targets[0])
        self._trained: dict[bytes, tuple[list[Bag], dict[str, Any]]] = {}

    def train(self, target: Cases, cases: NDArray[np.bool_]) -> tuple[Bag, dict[str, Any]]:
        """The head of one of the targets, learned from some of the cases, and its arguments."""
        key = cases.tobytes()
        if key not in self._trained:
            head = self.config.head
            self._trained[key] = train_together(head.model, self.targets, cases, self.bags, head.args, self.config.split.seed)
        bags, arguments = self._trained[key]
        return next(bag for bag, own in zip(bags, self.targets, strict=True) if own is target), arguments


def open_bags(config: FitConfig, cases: Cases) -> Bags:
    """The tiles of all cases, on the device that the config names.

    Raises
    ------
    InputError
        A slide has no good tile.
    """
    device = torch.device(
        "cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu" if config.device == "auto" else config.device
    )
    bags = Bags(cases.slides, config.head.input, config.memory_limit, positions=config.head.model == "transformer", device=device)
    empty = [slide.id for i, slide in enumerate(cases.slides) if not bags.count(i)]
    if empty:
        raise InputError(
            f"{some(empty)} {'have' if empty[1:] else 'has'} no tile with an embedding. Leave {'them' if empty[1:] else 'it'} out of the table."
        )
    return bags


class Slides:
    """Heads of slides."""

    row: Ints | None = None
    unit: Unit = "patients"

    def __init__(self, config: FitConfig, cases: Cases, shared: Shared | None = None) -> None:
        self.config, self.cases, self.shared = config, cases, shared
        self.case: Ints = np.flatnonzero((cases.fold >= 0) & cases.known)
        head = config.head
        self.bags = shared.bags if shared else open_bags(config, cases)
        self.pooled: Floats | None = pool_slides(cases.slides, head.input, head.model) if head.model in ("mean", "max") else None
        self.of_fold: list[Bag] = []
        """The head of each fold, which did not see its slides."""

    def train_all(self) -> tuple[Bag, str, dict[str, Any]]:
        """A head of all cases, the name of its model in a file, and its arguments."""
        return self._train(np.ones(len(self.cases.slides), np.bool_))

    def _train(self, cases: NDArray[np.bool_]) -> tuple[Bag, str, dict[str, Any]]:
        head = self.config.head
        if self.shared is not None:
            together, own = self.shared.train(self.cases, cases)
            return together, head.model, own
        bag, arguments = train_slides(head.model, self.cases, cases, self.pooled, self.bags, head.args, self.config.split.seed)
        return bag, "pool" if head.model in ("mean", "max") else head.model, arguments

    def predict_held_out(self) -> Predictions:
        """What is predicted of each slide by a head that saw nothing of its patient."""
        cases = self.cases
        scores = np.full((len(cases.slides), len(cases.classes) or 1), np.nan)
        for k in range(int(cases.fold.max()) + 1):
            bag, _, _ = self._train(cases.fold != k)
            self.of_fold.append(bag)
            test = np.flatnonzero((cases.fold == k) & cases.known)
            answers = predict_slides(bag, self.bags, test.tolist())
            scores[test] = softmax(answers) if cases.task == "classes" else answers
        at = self.case
        return Predictions(
            cases.task, cases.classes, cases.label[at], cases.value[at], cases.died[at], scores[at], cases.fold[at],
            np.unique(cases.patient[at], return_inverse=True)[1],
        )  # fmt: skip

    def attention(self, i: int) -> NDArray[np.float64]:
        """(n,) share of each tile of a slide in what was predicted of it, by the head that did not see it; NaN where a tile failed."""
        bag, rows = self.of_fold[int(self.cases.fold[i])].to(self.bags.device), self.bags.good(i)

        def blocks() -> Iterator[BagRows]:
            return (block for _, block in self.bags.whole([i]))

        with torch.no_grad():
            _, used, state = stream_bag(bag, blocks)
            shares = torch.cat([part.cpu() for part in bag_attention(bag, used, state, blocks)])
        found = np.full(self.cases.slides[i].layout.tiles, np.nan)
        found[rows] = shares.double().numpy()
        return found

    def by_majority(self, predictions: Predictions) -> Predictions:
        """The same without looking at anything."""
        cases = self.cases
        return majority(predictions, cases.label[cases.known], cases.value[cases.known], cases.fold[cases.known])

    def by_colour(self, predictions: Predictions) -> dict[str, Predictions]:
        """The same by a linear model of the mean colours of each slide's tiles on its thumbnail."""
        cases = self.cases
        found = [read_colours(slide, self.bags.good(i)) for i, slide in enumerate(cases.slides)]
        if any(colours is None for colours in found):
            return {}
        x = np.stack([colours.mean(axis=0) for colours in found if colours is not None])
        scores = np.full((len(x), predictions.scores.shape[1]), np.nan)
        for k in range(int(cases.fold.max()) + 1):
            train, test = (cases.fold != k) & cases.known, cases.fold == k
            if cases.task == "classes":
                scores[test] = softmax(fit_logistic(x[train], cases.label[train], len(cases.classes), 1.0).scores(x[test]))
            elif cases.task == "regression":
                scores[test] = fit_ridge(x[train], cases.value[train], 1.0).scores(x[test])
            else:
                scores[test] = fit_cox(x[train], cases.value[train], cases.died[train], 0.1).scores(x[test])
        return {"colour": _with_scores(predictions, scores[self.case])}


def _with_scores(found: Predictions, scores: Floats) -> Predictions:
    return replace(found, scores=scores)


def _check_tiles(drawn: Drawn, fold: Ints, classes: Sequence[str], unit: Unit) -> None:
    """Refuse tiles of which a class would be tested and never learned."""
    for k, name in enumerate(classes):
        folds = set(fold[drawn.label == k].tolist())
        if len(folds) < 2 and folds != {-1}:
            told = "no tiles" if not folds else "tiles in one fold only"
            raise InputError(
                f"the class {name!r} has {told}: it would be tested without having been learned. "
                f"{'Draw more regions of it' if unit == 'regions' else 'Label it on slides of more patients'}, leave it out by target.classes, or ask for fewer folds."
            )
