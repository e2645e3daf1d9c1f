"""What a context does to tissue whose classes are known: how near neighbours of one class come, whether borders stay, what a linear probe makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilestream.fitting import metrics
from tilestream.fitting.masked.blocks import TokenBlocks
from tilestream.fitting.masked.judge import tell
from tilestream.fitting.metrics import Floats, Ints
from tilestream.fitting.training.inner import softmax
from tilestream.fitting.training.linear import fit_logistic
from tilestream.models.context import ContextTransformer

MOST_PROBED = 6000
"""Tiles that a probe is fitted on at most."""


@dataclass(frozen=True)
class Vectors:
    """Tiles of some slides, n of them: as they are, standardised, and in context."""

    x: Floats
    context: Floats
    label: Ints
    """(n,) class; -1 where it has none."""
    slide: Ints
    tok_row: Ints
    tok_col: Ints


def read_vectors(model: ContextTransformer, blocks: TokenBlocks, labels: Sequence[Ints], stride_um: float | None, most: int) -> Vectors:
    """The tiles of blocks, `most` at most, nothing hidden."""
    assert model.ends is not None
    mean, spread = (part.double().numpy() for part in (model.ends.mean, model.ends.spread))
    parts = []
    count = 0
    for block in blocks.fixed():
        x = (block.tokens.astype(np.float64) - mean) / spread
        context = tell(model, block, None, stride_um)
        label = labels[block.slide][block.rows] if len(labels) else np.full(len(block), -1)
        parts.append((x, context, label, np.full(len(block), block.slide), block.tok_row, block.tok_col))
        count += len(block)
        if count >= most:
            break
    return Vectors(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def adjacent_pairs(found: Vectors) -> tuple[Ints, Ints]:
    """(p,) tiles and (p,) their neighbours to the right or below."""
    place = {key: n for n, key in enumerate(zip(found.slide.tolist(), found.tok_row.tolist(), found.tok_col.tolist(), strict=True))}
    pairs = [(n, other) for (slide, y, x), n in place.items() for dy, dx in ((0, 1), (1, 0))
             if (other := place.get((slide, y + dy, x + dx))) is not None]  # fmt: skip
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def compare_neighbours(found: Vectors, seed: int) -> dict[str, dict[str, float]]:
    """For tiles as they are (`x`) and in context: how far neighbours are apart, as a part of how far two tiles drawn anywhere are.

    `neighbours` of all; where classes are known also `one_class`, `border` (neighbours of two classes), `border_over_one_class`, and
    `border_auroc`: how well the distance tells a border from none, 0.5 being not at all.
    """
    first, second = adjacent_pairs(found)
    chance = np.random.default_rng(seed)
    one, two = chance.integers(len(found.x), size=(2, 20_000))
    known = (found.label[first] >= 0) & (found.label[second] >= 0)
    border = known & (found.label[first] != found.label[second])
    same = known & ~border
    told: dict[str, dict[str, float]] = {}
    for name, values in (("x", found.x), ("context", found.context)):
        anywhere = float(_apart(values, one, two).mean())
        near = _apart(values, first, second) / anywhere if len(first) else np.zeros(0)
        own = {"neighbours": _mean(near)}
        if border.any() and same.any():
            own |= {"one_class": _mean(near[same]), "border": _mean(near[border])}
            own["border_over_one_class"] = own["border"] / own["one_class"]
            own["border_auroc"] = metrics.auroc(border[known], near[known], np.ones(int(known.sum())))
        told[name] = own
    return told


def _apart(values: Floats, one: Ints, two: Ints) -> Floats:
    return np.concatenate([np.linalg.norm(values[one[k : k + 2000]] - values[two[k : k + 2000]], axis=1) for k in range(0, len(one), 2000)])


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def probe(train: Vectors, test: Vectors, seed: int) -> dict[str, dict[str, float]]:
    """Balanced accuracy and AUROC of logistic regressions of the tile's class on x, context, and both, learned on some slides and told on others.

    Empty where fewer than two classes are on both sides.
    """
    chance = np.random.default_rng(seed)
    there = np.flatnonzero(np.isin(train.label, np.intersect1d(train.label, test.label)) & (train.label >= 0))
    if len(np.unique(train.label[there])) < 2:
        return {}
    rows = np.sort(chance.permutation(there)[:MOST_PROBED])
    tested = np.flatnonzero(np.isin(test.label, train.label[rows]) & (test.label >= 0))
    names, label = np.unique(train.label[rows], return_inverse=True)
    truth = np.searchsorted(names, test.label[tested])
    told = {}
    for name in ("x", "context", "x_and_context"):
        given, asked = (_features(side, name)[at] for side, at in ((train, rows), (test, tested)))
        scores = softmax(fit_logistic(given, label, len(names), 0.1).scores(asked))
        ones = np.ones(len(truth))
        table = metrics.confusion(truth, scores.argmax(axis=1), len(names), ones)
        told[name] = {"balanced_accuracy": metrics.balanced_accuracy(table), "auroc": metrics.macro(metrics.auroc, truth, scores, ones)}
    return told


def _features(found: Vectors, name: str) -> Floats:
    if name == "x_and_context":
        return np.concatenate([found.x, found.context], axis=1)
    return found.x if name == "x" else found.context
