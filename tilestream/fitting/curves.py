"""Curves of an evaluation as SVG: ROC, calibration, survival, predicted over true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from tilestream.fitting.evaluate import Predictions
from tilestream.fitting.metrics import BINS, Floats, kaplan_meier

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito, told apart by most who see colours otherwise."""

SIDE, EDGE = 240, 34
"""Side of a plot and its left and lower margin, px."""


def draw_curves(predictions: Predictions) -> Iterator[str]:
    """The figures that fit a task, as HTML."""
    if predictions.task == "classes":
        yield _figure(
            _roc(predictions), "false positive rate", "true positive rate", "ROC, each class against the others", predictions.classes
        )
        yield _figure(_calibration(predictions), "confidence", "accuracy", "Calibration: on the diagonal, probabilities mean what they say")
    elif predictions.task == "survival":
        high = predictions.scores[:, 0] > np.median(predictions.scores[:, 0])
        top = float(predictions.value.max()) or 1.0
        lines = [_steps(*kaplan_meier(predictions.value[part], predictions.died[part]), top) for part in (~high, high)]
        yield _figure(lines, f"time, 0 to {top:g}", "share alive", "Kaplan-Meier curves of low and high predicted risk", ("low", "high"))
    else:
        low = min(predictions.value.min(), predictions.scores.min())
        spread = max(predictions.value.max(), predictions.scores.max()) - low or 1.0
        dots = np.stack([(predictions.value - low) / spread, (predictions.scores[:, 0] - low) / spread], axis=1)
        yield _figure([], f"true, {low:g} to {low + spread:g}", "predicted", "Predicted over true", dots=dots[:2000])


def _roc(predictions: Predictions) -> list[Floats]:
    lines = []
    for k in range(len(predictions.classes)):
        positive = predictions.label == k
        order = np.argsort(-predictions.scores[:, k], kind="stable")
        ends = np.flatnonzero(np.diff(predictions.scores[order, k], append=np.inf))
        hits, misses = np.cumsum(positive[order])[ends], np.cumsum(~positive[order])[ends]
        line = np.stack([misses / max(1, misses[-1]), hits / max(1, hits[-1])], axis=1)
        lines.append(np.concatenate([[[0.0, 0.0]], line[:: max(1, len(line) // 400)], [[1.0, 1.0]]]))
    return lines


def _calibration(predictions: Predictions) -> list[Floats]:
    sure, hit = predictions.scores.max(axis=1), predictions.scores.argmax(axis=1) == predictions.label
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    return [np.array([[sure[bins == b].mean(), hit[bins == b].mean()] for b in np.unique(bins)])]


def _steps(at: Floats, share: Floats, top: float) -> Floats:
    x = np.concatenate([[0.0], np.repeat(at / top, 2), [1.0]])
    y = np.concatenate([[1.0], np.repeat(np.concatenate([[1.0], share]), 2)[1:]])
    return np.stack([x, y], axis=1)


def _figure(lines: Sequence[Floats], x_name: str, y_name: str, words: str, names: Sequence[str] = (), dots: Floats | None = None) -> str:
    """One plot of lines (m, 2) in the unit square."""
    size = SIDE - EDGE

    def place(point: Floats) -> str:
        return f"{EDGE + point[0] * size:.1f},{(1 - point[1]) * size + 6:.1f}"

    parts = [f'<rect x="{EDGE}" y="6" width="{size}" height="{size}" fill="#fff" stroke="#dfe5ec"/>',
             f'<path d="M{EDGE},{size + 6} L{SIDE},6" stroke="#c5ced8" stroke-dasharray="4 4"/>']  # fmt: skip
    for k, line in enumerate(lines):
        points = " ".join(place(point) for point in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[k % len(COLOURS)]}" stroke-width="1.8"/>')
    for dot in [] if dots is None else dots:
        x, y = place(dot).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="2.4" fill="{COLOURS[0]}" fill-opacity=".5"/>')
    for k, name in enumerate(names[:8]):
        parts.append(
            f'<text x="{SIDE - 6}" y="{size - 8 - 13 * k}" text-anchor="end" style="fill:{COLOURS[k % len(COLOURS)]}">{escape(name)}</text>'
        )
    parts.append(f'<text x="{EDGE + size / 2}" y="{SIDE + 2}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>')
    picture = f'<svg width="{SIDE + 8}" height="{SIDE + 10}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    return f"<figure>{picture}<figcaption>{escape(words)}</figcaption></figure>"
