"""What `fit` leaves beside a head: metrics as JSON, predictions as CSV, and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.fitting.curves import draw_curves
from tilestream.fitting.evaluate import ROUNDS, Evaluation, Metric, Predictions, widening
from tilestream.fitting.pictures import fill_page, slide_picture, tile_picture
from tilestream.fitting.targets import Cases

WORST = 20
"""Slides, or tiles, whose predictions are shown because they are furthest from the truth."""

LEGEND = "Orange is where the head looked, the more the stronger, and beside it the tiles that it looked at most; by the head that had not seen the slide."

MOST_SEEN = 3
"""Tiles with the greatest attention that are shown of each of these slides."""


@dataclass(frozen=True)
class Fitted:
    """A head that was trained, and what is to be told of it."""

    name: str
    about: str
    """Head, embeddings and target in one line."""
    cases: Cases
    predictions: Predictions
    case: NDArray[np.int64]
    """(m,) number of each prediction's slide."""
    row: NDArray[np.int64] | None
    """(m,) row of each prediction's tile; None where slides are predicted."""
    evaluation: Evaluation
    attention: Callable[[int], NDArray[np.float64]] | None = None
    """(n,) share of each tile of a slide in what was predicted of it, by the head that did not see it; None where heads have no attention."""


def metrics_json(fitted: Fitted, settings: dict[str, Any], memory: dict[str, int]) -> str:
    """Metrics with intervals, by fold, of the baselines, the config and the bytes that were projected and taken, for programs."""
    evaluation = fitted.evaluation
    found = {
        "tilestream": "fit",
        "head": fitted.name,
        "config": settings,
        "classes": list(fitted.predictions.classes),
        "patients": evaluation.patients,
        "samples": evaluation.samples,
        "metrics": {name: _plain(metric) for name, metric in evaluation.metrics.items()},
        "by_fold": [{name: _number(value) for name, value in fold.items()} for fold in evaluation.by_fold],
        "baselines": {name: {key: _plain(metric) for key, metric in found.items()} for name, found in evaluation.baselines.items()},
        "confusion": evaluation.confusion,
        "notes": list(evaluation.notes),
        "left_out": list(fitted.cases.left_out),
        "memory": memory,
    }
    return json.dumps(found, indent=1, ensure_ascii=False)


def _plain(metric: Metric) -> dict[str, float | None]:
    return {"value": _number(metric.value), "low": _number(metric.low), "high": _number(metric.high)}


def _number(value: float) -> float | None:
    """A number as JSON has it: nothing in place of NaN."""
    return value if math.isfinite(value) else None


def predictions_csv(fitted: Fitted) -> str:
    """One row a slide: what was predicted of it by a head that saw nothing of its patient; of tiles, means over those that have a label."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    found, cases = fitted.predictions, fitted.cases
    scores = [f"probability_{name}" for name in found.classes] or ["predicted" if found.task == "regression" else "log_risk"]
    truth = {"classes": ["label", "predicted"], "regression": ["value"], "survival": ["time", "died"]}[found.task]
    counted = ["tiles"] if fitted.row is not None else []
    out.writerow(["slide", "patient", "fold", *counted, *truth, *scores])
    for i in np.unique(fitted.case).tolist():
        own = np.flatnonzero(fitted.case == i)
        mean = found.scores[own].mean(axis=0)
        told = _truth(found, own, int(mean.argmax()))
        counts = [len(own)] if counted else []
        out.writerow([cases.slides[i].id, cases.patients[i], int(found.fold[own[0]]), *counts, *told, *(f"{value:.6g}" for value in mean)])
    return text.getvalue()


def _truth(found: Predictions, own: NDArray[np.int64], predicted: int) -> list[object]:
    """What is true of a slide, and the class that was predicted."""
    if found.task == "classes":
        return ["|".join(found.classes[k] for k in np.unique(found.label[own]).tolist()), found.classes[predicted]]
    return [found.value[own[0]], *([int(found.died[own[0]])] if found.task == "survival" else [])]


def report_html(fitted: Fitted) -> str:
    """The page."""
    evaluation, found = fitted.evaluation, fitted.predictions
    notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    left = "".join(f"<li>{escape(words)}</li>" for words in fitted.cases.left_out[:200])
    confusion = ""
    if evaluation.confusion:
        rows = [[name, *counts] for name, counts in zip(found.classes, evaluation.confusion, strict=True)]
        confusion = f"<h2>True class (rows) and predicted class</h2><div class='wide'>{table_html(['', *found.classes], rows)}</div>"
    return fill_page(
        "fit.html",
        title=escape(f"Head {fitted.name}"),
        about=escape(fitted.about),
        notes=f"<ul class='note'>{notes}</ul>" if notes else "",
        metrics=_metrics_table(evaluation),
        rounds=ROUNDS,
        unit=found.unit,
        wider=f", made {wider:.2f} times as wide because the heads of the folds learned from the same {found.unit}"
        if (wider := widening(len(evaluation.by_fold))) > 1
        else "",
        folds=table_html(
            ["fold", *evaluation.by_fold[0]],
            [
                [k, *(f"{value:.3f}" if name != "samples" else int(value) for name, value in fold.items())]
                for k, fold in enumerate(evaluation.by_fold)
            ],
        ),
        confusion=confusion,
        curves="".join(draw_curves(found)),
        worst=_worst(fitted),
        seen="" if fitted.attention is None else f"<p class='soft'>{LEGEND}</p>",
        left_out=f"<h2>Not used</h2><ul>{left}</ul>" if left else "",
    )


def _metrics_table(evaluation: Evaluation) -> str:
    columns = {"this head": evaluation.metrics, **evaluation.baselines}
    return table_html(
        ["", *columns], [[name.replace("_", " "), *(str(found[name]) for found in columns.values())] for name in evaluation.metrics]
    )


def table_html(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table, every cell escaped."""

    def cells(row: Sequence[object], tag: str) -> str:
        return "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _worst(fitted: Fitted) -> str:
    """Slides or tiles that were predicted furthest from the truth, with what the thumbnail shows of them."""
    rows = "".join(
        f"<tr><td>{picture}</td>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
        for picture, cells in _worst_rows(fitted)
    )
    what = ["", "slide", *(["row", "column"] if fitted.row is not None else []), "truth", "predicted"]
    return f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in what)}</tr></thead><tbody>{rows}</tbody></table>"


def _worst_rows(fitted: Fitted) -> Iterator[tuple[str, list[object]]]:
    found = fitted.predictions
    if found.task == "classes":
        error = -np.log(np.maximum(found.scores[np.arange(len(found.label)), found.label], 1e-12))
    elif found.task == "regression":
        error = np.abs(found.value - found.scores[:, 0])
    else:  # who died early and was thought safe, or lived long and was not
        error = np.argsort(np.argsort(found.value)) + np.argsort(np.argsort(found.scores[:, 0])) - len(found.value)
        error = np.abs(error)
    for m in np.argsort(-error, kind="stable")[:WORST].tolist():
        slide = fitted.cases.slides[int(fitted.case[m])]
        row = None if fitted.row is None else int(fitted.row[m])
        place: list[object] = [] if row is None else [slide.read_column(name)[row] for name in ("row", "col")]
        if found.task == "classes":
            k = int(found.scores[m].argmax())
            told: list[object] = [found.classes[int(found.label[m])], f"{found.classes[k]} ({found.scores[m, k]:.2f})"]
        else:
            told = [f"{found.value[m]:.4g}", f"{found.scores[m, 0]:.4g}"]
        shares = None if fitted.attention is None else fitted.attention(int(fitted.case[m]))
        shown = slide_picture(slide, shares) if row is None else tile_picture(slide, row)
        seen = "" if shares is None else "".join(tile_picture(slide, int(k)) for k in np.argsort(-shares, kind="stable")[:MOST_SEEN])
        yield shown + seen, [slide.id, *place, *told]


def beside(save: str) -> dict[str, Path]:
    """The files of a head, by what they hold."""
    stem = save.removesuffix(".safetensors")
    return {
        "head": Path(save),
        "report": Path(f"{stem}.html"),
        "metrics": Path(f"{stem}.json"),
        "predictions": Path(f"{stem}-predictions.csv"),
    }
