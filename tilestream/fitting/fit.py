"""What the command `fit` does: labels and stored embeddings in, a head and what it is worth out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tilestream.config.fit_schema import FitConfig
from tilestream.config.load import load_section
from tilestream.encoders.heads.head_file import Fitted as FittedOn
from tilestream.encoders.heads.head_file import HeadAbout, read_about, write_head
from tilestream.errors import ConfigError
from tilestream.fitting.evaluate import Evaluation, evaluate
from tilestream.fitting.held_out import Shared, Slides, Tiles
from tilestream.fitting.masked.fit_context import ContextSummary, fit_context
from tilestream.fitting.memory import FitMemory, project_memory
from tilestream.fitting.outputs import open_slides, refuse_foreign, refuse_other_resolutions, write_texts
from tilestream.fitting.report import Fitted, beside, metrics_json, predictions_csv, report_html
from tilestream.fitting.targets import Cases, find_cases, refuse_mixed_embeddings
from tilestream.fitting.training.tile_models import linear_head
from tilestream.fitting.unlabelled.cluster_report import clusters_texts
from tilestream.fitting.unlabelled.clusters import cluster_slides
from tilestream.fitting.unlabelled.neighbours import find_duplicates
from tilestream.runner.recipe import context_sha256
from tilestream.stages.hardware import forget_peak, peak_memory
from tilestream.store.slide import Slide

ATTENTIVE = ("abmil", "transformer")
"""Models that look at some tiles more than at others."""


@dataclass(frozen=True)
class FitSummary:
    """What came out."""

    head: Path
    report: Path
    metrics: Path
    predictions: Path
    evaluation: Evaluation | None
    """How good it is on patients it never saw; None of clusters, of which nothing is true or false."""
    memory: FitMemory | None
    """What was projected before anything was learned; None of clusters, which hold a block at a time."""
    peak_bytes: int
    """What was taken, at most; where the system does not say since when, of the whole process."""
    lines: tuple[str, ...]
    """What a person reads at the end."""
    each: Mapping[str, FitSummary] = field(default_factory=dict)
    """With `target.columns`, the summary of each; the rest is then that of the first."""


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
        Given lines meanwhile: how much memory learning will take, and now and then how a context learns.

    Raises
    ------
    ConfigError, InputError, IncompleteError
        As the exit codes of the command line say; nothing is written then.
    """
    checked = config if isinstance(config, FitConfig) else load_section(FitConfig, config, overrides)
    if checked.target.masked is not None:
        return fit_context(checked, tell)
    return _fit_each(checked, tell) if checked.target.columns else _fit_one(checked, tell)


def _fit_one(checked: FitConfig, tell: Callable[[str], None]) -> FitSummary:
    _refuse_foreign(checked)
    forget_peak()
    slides, facts = _open(checked)
    if checked.target.clusters is not None:
        return _fit_clusters(checked, slides, facts)
    return _fit_head(checked, find_cases(checked, slides), facts, tell)


def _refuse_foreign(config: FitConfig) -> None:
    files = beside(config.save)
    others = [path for kind, path in files.items() if kind != "head"]
    refuse_foreign(files["head"], others, lambda path: read_about(path) is not None, "head")


def _open(config: FitConfig) -> tuple[list[Slide], Mapping[str, object]]:
    """The slides, and what their embeddings have in common."""
    slides = _lightened(open_slides(config.embeddings))
    facts = refuse_mixed_embeddings(slides, config.head.input)
    refuse_other_resolutions(slides)
    return slides, facts


def _fit_head(
    checked: FitConfig, cases: Cases, facts: Mapping[str, object], tell: Callable[[str], None], shared: Shared | None = None
) -> FitSummary:
    memory = project_memory(checked, cases)
    tell(str(memory))
    torch.manual_seed(checked.split.seed)  # nothing draws from it; what did, unseen, would draw the same
    work = Tiles(checked, cases) if checked.head.kind == "classify" else Slides(checked, cases, shared)
    predictions = work.predict_held_out()
    evaluation = evaluate(
        predictions, {"majority": work.by_majority(predictions), **work.by_colour(predictions)}, checked.split.seed, _notes(work)
    )
    module, model, arguments = work.train_all()
    fitted = Fitted(
        checked.head.name,
        _about(checked, work.cases, facts),
        work.cases,
        predictions,
        work.case,
        work.row,
        evaluation,
        work.attention if isinstance(work, Slides) and checked.head.model in ATTENTIVE else None,
    )
    about = HeadAbout(
        checked.head.kind, model, checked.head.input, int(str(facts["dimensions"])), len(predictions.classes) or 1,
        task={"classes": "classification", "regression": "regression", "survival": "risk"}[predictions.task],
        classes=predictions.classes, arguments=arguments, fitted=_fitted_on(cases.slides, checked.head.input),
        metrics={name: {"value": metric.value, "low": metric.low, "high": metric.high} for name, metric in evaluation.metrics.items() if np.isfinite(metric.value)},
        notes=f"{evaluation.patients} {work.unit}, {evaluation.samples} {'tiles' if work.row is not None else 'slides'}, {checked.split.folds} folds",
    )  # fmt: skip
    texts = {
        "metrics": metrics_json(fitted, checked.model_dump(mode="json"), {"projected": memory.total, "peak": peak_memory()}),
        "predictions": predictions_csv(fitted), "report": report_html(fitted),
    }  # fmt: skip
    return _write(checked, module, about, texts, (evaluation, memory), tuple(_lines(fitted)))


def _fit_each(config: FitConfig, tell: Callable[[str], None]) -> FitSummary:
    """A head of each column; all are judged on the same patients where the same slides have labels, or the heads share their layers."""
    configs: dict[str, FitConfig] = {}
    for column in config.target.columns:
        word = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        target = config.target.model_copy(update={"column": column})
        head = config.head.model_copy(update={"name": f"{config.head.name}_{word}"})
        save = config.save.replace("{column}", word)
        if any(other.save == save for other in configs.values()):
            raise ConfigError(f"target.columns: {column!r} would be written to {save}, as another column is. Rename one of them.")
        configs[column] = config.model_copy(update={"target": target, "head": head, "save": save})
        _refuse_foreign(configs[column])
    forget_peak()
    slides, facts = _open(config)
    cases = {column: find_cases(own, slides) for column, own in configs.items()}
    shared = Shared(config, [*cases.values()]) if config.target.shared else None
    each = {column: _fit_head(own, cases[column], facts, tell, shared) for column, own in configs.items()}
    first = next(iter(each.values()))
    return replace(first, lines=tuple(line for column, found in each.items() for line in (f"{column}:", *found.lines)), each=each)


def _fit_clusters(config: FitConfig, slides: Sequence[Slide], facts: Mapping[str, object]) -> FitSummary:
    """A head that tells the nearest of some centres, and a report on what lies where."""
    head, count = config.head, config.target.clusters
    assert count is not None
    if head.args:
        raise ConfigError(f"head.args.{next(iter(head.args))}: kmeans has no settings; target.clusters says how many clusters there are.")
    found = cluster_slides(slides, head.input, count, config.split.seed)
    duplicates = find_duplicates(slides, head.input, config.split.seed)
    classes = tuple(f"cluster {k + 1}" for k in range(count))
    about = HeadAbout(
        head.kind, "linear", head.input, int(str(facts["dimensions"])), count, task="classification", classes=classes,
        fitted=_fitted_on(slides, head.input), notes=f"{count} clusters of {int(found.counts.sum()):,} tiles of {len(slides)} slides, without labels",
    )  # fmt: skip
    texts = clusters_texts(head.name, about.notes, slides, head.input, found, duplicates)
    lines = (about.notes, f"furthest out: {slides[found.outliers[0][0]].id}, tile {found.outliers[0][1]}" if found.outliers else "no outliers",
             f"{len(duplicates)} pairs of tiles are nearly the same", *(f"note: {note}" for note in refuse_other_resolutions(slides)))  # fmt: skip
    return _write(config, linear_head(found.model), about, texts, (None, None), lines)


def _lightened(slides: list[Slide]) -> list[Slide]:
    """The same slides; thousands of them share one recipe, and their completion marks, which were looked at, are let go."""
    recipes: dict[str, dict[str, Any]] = {}
    for slide in slides:
        slide.recipe = recipes.setdefault(json.dumps(slide.recipe, sort_keys=True), slide.recipe)
        slide.completion = {}
    return slides


def _notes(work: Tiles | Slides) -> tuple[str, ...]:
    """What a person should know of what was learned from and how it was judged."""
    held: list[str] = []
    if work.unit == "regions":
        held.append(
            "All labels are on slides of one patient: drawn regions were held out, not patients. Draw on slides of several patients to learn how it does there."
        )
    elif not work.cases.by_patient:
        held.append(
            "No column of patients is known: slides are held out one by one, and two slides of one patient may lie on both sides. Name it by split.patient."
        )
    return (*held, *work.cases.told, *refuse_other_resolutions(work.cases.slides))


def _about(config: FitConfig, cases: Cases, facts: Mapping[str, object]) -> str:
    """Head, embeddings and target in one line."""
    target = config.target
    column = f"{target.survival.time} and {target.survival.event}" if target.survival else target.column
    used = np.flatnonzero(cases.known) if config.target.shared else range(len(cases.slides))
    of = f"{column} of {target.slides}" if target.slides else target.annotations or f"{target.obs} of the list of slides"
    return (
        f"{config.head.model} on {config.head.input} of {facts['encoder']}, slides {len(used)}, patients {len({cases.patients[i] for i in used})}, to "
        f"{'tell ' + ', '.join(cases.classes) if cases.classes else 'predict ' + ('survival' if cases.task == 'survival' else 'a number')}; from {of}"
    )


def _fitted_on(slides: Sequence[Slide], what: str) -> FittedOn:
    """What a head demands of what it is given; of imported embeddings their encoder is known by its name at most."""
    slide = slides[0]
    encoder = slide.recipe["encoder"]
    mpp = next((each.tile_mpp for each in slides if each.tile_mpp is not None), None)
    context = context_sha256(slide.recipe) if what == "context" else None
    return FittedOn(slide.encoder, encoder.get("weights_sha256"), encoder.get("precision"), slide.tile, mpp, context)


def _write(
    config: FitConfig,
    module: nn.Module,
    about: HeadAbout,
    texts: Mapping[str, str],
    found: tuple[Evaluation | None, FitMemory | None],
    lines: tuple[str, ...],
) -> FitSummary:
    """Write the head last: whoever finds it finds what it is worth beside it."""
    files = beside(config.save)
    try:
        write_texts([(files[kind], text) for kind, text in texts.items()])
        write_head(files["head"], module, about)
    except OSError as error:
        raise ConfigError(f"save: {config.save} cannot be written: {error.strerror or error}.") from error
    written = (f"head: {files['head']}", f"report: {files['report']}")
    return FitSummary(files["head"], files["report"], files["metrics"], files["predictions"], *found, peak_memory(), (*lines, *written))


def _lines(fitted: Fitted) -> list[str]:
    found = fitted.evaluation
    shown = [name for name in ("auroc", "balanced_accuracy", "c_index", "r2") if name in found.metrics]
    lines = [fitted.about]
    for name in shown:
        others = ", ".join(f"{other} {metrics[name].value:.3f}" for other, metrics in found.baselines.items())
        lines.append(f"{name.replace('_', ' ')} {found.metrics[name]}, {fitted.predictions.unit} never seen; {others}")
    lines += [f"note: {note}" for note in found.notes]
    if fitted.cases.left_out:
        lines.append(f"not used: {len(fitted.cases.left_out)} slides, e.g. {fitted.cases.left_out[0]}")
    return lines
