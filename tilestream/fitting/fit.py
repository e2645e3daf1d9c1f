"""What the command `fit` does: labels and stored embeddings in, a head and what it is worth out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tilestream.config.fit_schema import FitConfig
from tilestream.config.load import load_section
from tilestream.encoders.heads.head_file import Fitted as FittedOn
from tilestream.encoders.heads.head_file import HeadAbout, read_about, write_head
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.colour import read_colours
from tilestream.fitting.evaluate import Evaluation, Predictions, evaluate, majority
from tilestream.fitting.masked.fit_context import ContextSummary, fit_context
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.outputs import open_slides, refuse_foreign, write_texts
from tilestream.fitting.report import Fitted, beside, metrics_json, predictions_csv, report_html
from tilestream.fitting.targets import Cases, find_cases, refuse_mixed_embeddings
from tilestream.fitting.tile_labels import label_tiles
from tilestream.fitting.training.bags import Bags
from tilestream.fitting.training.features import Drawn, pool_slides, read_drawn
from tilestream.fitting.training.inner import softmax
from tilestream.fitting.training.linear import fit_cox, fit_logistic, fit_ridge
from tilestream.fitting.training.slide_models import predict_slides, train_slides
from tilestream.fitting.training.tile_models import scores_of, train_tiles
from tilestream.models.heads.bags import Bag
from tilestream.runner.recipe import context_sha256
from tilestream.store.slide import Slide

COPIES = 6
"""Times that the vectors of drawn tiles are held while a head learns: as read, and in float64 as they are standardised and multiplied."""


@dataclass(frozen=True)
class FitSummary:
    """What came out."""

    head: Path
    report: Path
    metrics: Path
    predictions: Path
    evaluation: Evaluation
    lines: tuple[str, ...]
    """What a person reads at the end."""


def fit(
    config: FitConfig | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = lambda words: None,  # noqa: ARG005
) -> FitSummary | ContextSummary:
    """Train a head, or with `target.masked` a context, on stored embeddings and judge it on patients that it never saw; what the command `fit` does.

    The head that is written has learned from all slides; its numbers are those of as many heads as there are folds, each judged on the
    patients of its fold. Files of an earlier fit are replaced, and none but these.

    Parameters
    ----------
    config : FitConfig, mapping or path
        What to do.
    overrides : sequence of str
        `a.b=c` settings that go before the config's.
    tell : callable
        Given a line now and then while a context learns.

    Raises
    ------
    ConfigError, InputError, IncompleteError
        As the exit codes of the command line say; nothing is written then.
    """
    checked = config if isinstance(config, FitConfig) else load_section(FitConfig, config, overrides)
    if checked.target.masked is not None:
        return fit_context(checked, tell)
    files = beside(checked.save)
    others = [path for kind, path in files.items() if kind != "head"]
    refuse_foreign(files["head"], others, lambda path: read_about(path) is not None, "head")
    slides = open_slides(checked.embeddings)
    facts = refuse_mixed_embeddings(slides, checked.head.input)
    cases = find_cases(checked, slides)
    torch.manual_seed(checked.split.seed)  # nothing draws from it; what did, unseen, would draw the same
    work = _Tiles(checked, cases) if checked.head.kind == "classify" else _Slides(checked, cases)
    predictions = work.predict_held_out()
    evaluation = evaluate(
        predictions, {"majority": majority(predictions), **work.by_colour(predictions)}, checked.split.seed, _notes(work.cases)
    )
    module, model, arguments = work.train(np.ones(len(work.cases.slides), np.bool_))
    fitted = Fitted(checked.head.name, _about(checked, work.cases, facts), work.cases, predictions, work.case, work.row, evaluation)
    about = HeadAbout(
        checked.head.kind, model, checked.head.input, int(str(facts["dimensions"])), len(predictions.classes) or 1,
        task={"classes": "classification", "regression": "regression", "survival": "risk"}[predictions.task],
        classes=predictions.classes, arguments=arguments, fitted=_fitted_on(slides[0], checked.head.input),
        metrics={name: {"value": metric.value, "low": metric.low, "high": metric.high} for name, metric in evaluation.metrics.items() if np.isfinite(metric.value)},
        notes=f"{evaluation.patients} patients, {evaluation.samples} {'tiles' if work.row is not None else 'slides'}, {checked.split.folds} folds",
    )  # fmt: skip
    return _write(checked, module, about, fitted)


class _Tiles:
    """Heads of tiles."""

    def __init__(self, config: FitConfig, cases: Cases) -> None:
        self.config = config
        self.cases, labels = label_tiles(config, cases)
        dim = int(self.cases.slides[0].vectors(config.head.input).shape[1])
        limit = max(1000, config.memory_limit // (dim * 4 * COPIES))
        self.drawn: Drawn = read_drawn(self.cases.slides, config.head.input, labels, len(self.cases.classes), limit, config.split.seed)
        self.fold = self.cases.fold[self.drawn.case]
        tested = self.fold >= 0
        self.case: Ints = self.drawn.case[tested]
        self.row: Ints | None = self.drawn.row[tested]
        _check_tiles(self.drawn, self.fold, self.cases.classes)

    def train(self, cases: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[nn.Module, str, dict[str, Any]]:
        """A head of the drawn tiles of some cases, the name of its model in a file, and its arguments."""
        rows, head = cases[self.drawn.case], self.config.head
        group = self.cases.group[self.drawn.case[rows]]
        module, arguments = train_tiles(
            head.model, self.drawn.x[rows], self.drawn.label[rows], group, len(self.cases.classes), head.args, self.config.split.seed
        )
        return module, head.model, arguments

    def predict_held_out(self) -> Predictions:
        """Probabilities of each drawn tile, by a head that saw nothing of its patient."""
        scores = np.full((len(self.drawn.x), len(self.cases.classes)), np.nan)
        for k in range(int(self.fold.max()) + 1):
            module, _, _ = self.train(self.cases.fold != k)
            scores[self.fold == k] = softmax(scores_of(module, self.drawn.x[self.fold == k]))
        tested = self.fold >= 0
        nothing = np.full(len(self.case), np.nan)
        return Predictions(
            "classes", self.cases.classes, self.drawn.label[tested], nothing, np.zeros(len(self.case), np.bool_), scores[tested], self.fold[tested],
            np.unique(self.cases.patient[self.case], return_inverse=True)[1],
        )  # fmt: skip

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


class _Slides:
    """Heads of slides."""

    row: Ints | None = None

    def __init__(self, config: FitConfig, cases: Cases) -> None:
        self.config, self.cases = config, cases
        self.case: Ints = np.flatnonzero(cases.fold >= 0)
        head = config.head
        self.bags = Bags(cases.slides, head.input, config.memory_limit, positions=head.model == "transformer")
        self.pooled: Floats | None = pool_slides(cases.slides, head.input, head.model) if head.model in ("mean", "max") else None
        self.device = torch.device(
            "cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu" if config.device == "auto" else config.device
        )

    def train(self, cases: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Bag, str, dict[str, Any]]:
        """A head of some cases, the name of its model in a file, and its arguments."""
        head = self.config.head
        bag, arguments = train_slides(head.model, self.cases, cases, self.pooled, self.bags, head.args, self.config.split.seed, self.device)
        return bag, "pool" if head.model in ("mean", "max") else head.model, arguments

    def predict_held_out(self) -> Predictions:
        """What is predicted of each slide by a head that saw nothing of its patient."""
        cases = self.cases
        scores = np.full((len(cases.slides), len(cases.classes) or 1), np.nan)
        for k in range(int(cases.fold.max()) + 1):
            bag, _, _ = self.train(cases.fold != k)
            test = np.flatnonzero(cases.fold == k)
            answers = predict_slides(bag, self.bags, test.tolist())
            scores[test] = softmax(answers) if cases.task == "classes" else answers
        at = self.case
        return Predictions(
            cases.task, cases.classes, cases.label[at], cases.value[at], cases.died[at], scores[at], cases.fold[at],
            np.unique(cases.patient[at], return_inverse=True)[1],
        )  # fmt: skip

    def by_colour(self, predictions: Predictions) -> dict[str, Predictions]:
        """The same by a linear model of the mean colours of each slide's tiles on its thumbnail."""
        cases = self.cases
        found = [read_colours(slide, self.bags.good(i)) for i, slide in enumerate(cases.slides)]
        if any(colours is None for colours in found):
            return {}
        x = np.stack([colours.mean(axis=0) for colours in found if colours is not None])
        scores = np.full((len(x), predictions.scores.shape[1]), np.nan)
        for k in range(int(cases.fold.max()) + 1):
            train, test = cases.fold != k, cases.fold == k
            if cases.task == "classes":
                scores[test] = softmax(fit_logistic(x[train], cases.label[train], len(cases.classes), 1.0).scores(x[test]))
            elif cases.task == "regression":
                scores[test] = fit_ridge(x[train], cases.value[train], 1.0).scores(x[test])
            else:
                scores[test] = fit_cox(x[train], cases.value[train], cases.died[train], 0.1).scores(x[test])
        return {"colour": _with_scores(predictions, scores[self.case])}


def _with_scores(found: Predictions, scores: Floats) -> Predictions:
    return Predictions(found.task, found.classes, found.label, found.value, found.died, scores, found.fold, found.patient)


def _check_tiles(drawn: Drawn, fold: Ints, classes: Sequence[str]) -> None:
    """Refuse tiles of which a class would be tested and never learned."""
    for k, name in enumerate(classes):
        folds = set(fold[drawn.label == k].tolist())
        if len(folds) < 2 and folds != {-1}:
            told = "no tiles" if not folds else "tiles in one fold only"
            raise InputError(
                f"the class {name!r} has {told}: it would be tested without having been learned. Label it on slides of more patients, "
                "leave it out by target.classes, or ask for fewer folds."
            )


def _notes(cases: Cases) -> tuple[str, ...]:
    if cases.by_patient:
        return ()
    return (
        "No column of patients is known: slides are held out one by one, and two slides of one patient may lie on both sides. Name it by split.patient.",
    )


def _about(config: FitConfig, cases: Cases, facts: Mapping[str, object]) -> str:
    """Head, embeddings and target in one line."""
    target = config.target
    column = f"{target.survival.time} and {target.survival.event}" if target.survival else target.column
    of = f"{column} of {target.slides}" if target.slides else target.annotations or f"{target.obs} of the list of slides"
    return (
        f"{config.head.model} on {config.head.input} of {facts['encoder']}, {len(cases.slides)} slides of {len(set(cases.patients))} patients, to tell "
        f"{', '.join(cases.classes) or cases.task}; from {of}"
    )


def _fitted_on(slide: Slide, what: str) -> FittedOn | None:
    """What a head demands of what it is given; None for imported embeddings, whose encoder is not known by its weights."""
    encoder = slide.recipe["encoder"]
    if "weights_sha256" not in encoder:
        return None
    mpp = None if slide.mpp is None else slide.mpp * slide.scale
    return FittedOn(
        slide.encoder,
        encoder["weights_sha256"],
        encoder["precision"],
        slide.tile,
        mpp,
        context_sha256(slide.recipe) if what == "context" else None,
    )


def _write(config: FitConfig, module: nn.Module, about: HeadAbout, fitted: Fitted) -> FitSummary:
    """Write the head last: whoever finds it finds what it is worth beside it."""
    files = beside(config.save)
    try:
        settings = config.model_dump(mode="json")
        write_texts(
            [
                (files["metrics"], metrics_json(fitted, settings)),
                (files["predictions"], predictions_csv(fitted)),
                (files["report"], report_html(fitted)),
            ]
        )
        write_head(files["head"], module, about)
    except OSError as error:
        raise ConfigError(f"save: {config.save} cannot be written: {error.strerror or error}.") from error
    return FitSummary(
        files["head"], files["report"], files["metrics"], files["predictions"], fitted.evaluation, tuple(_lines(fitted, files))
    )


def _lines(fitted: Fitted, files: Mapping[str, Path]) -> list[str]:
    found = fitted.evaluation
    shown = [name for name in ("auroc", "balanced_accuracy", "c_index", "r2") if name in found.metrics]
    lines = [fitted.about]
    for name in shown:
        others = ", ".join(f"{other} {metrics[name].value:.3f}" for other, metrics in found.baselines.items())
        lines.append(f"{name.replace('_', ' ')} {found.metrics[name]}, patients never seen; {others}")
    lines += [f"note: {note}" for note in found.notes]
    if fitted.cases.left_out:
        lines.append(f"not used: {len(fitted.cases.left_out)} slides, e.g. {fitted.cases.left_out[0]}")
    return [*lines, f"head: {files['head']}", f"report: {files['report']}"]
