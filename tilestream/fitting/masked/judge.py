"""How well a context tells hidden tokens of slides that it has not seen, beside what needs no context, and with places that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from tilestream.fitting.evaluate import Metric
from tilestream.fitting.masked.baselines import Mask, NeighbourRidge, nearest, window_mean
from tilestream.fitting.masked.blocks import Block
from tilestream.fitting.metrics import Floats, Ints
from tilestream.models.context import ContextTransformer

ROUNDS = 1000
"""Draws of squares behind an interval."""

CONTEXT, SHUFFLED = "context", ("shuffled_in_windows", "shuffled_in_blocks")
BASELINES = ("mean", "window_mean", "nearest", "ridge")
"""What a context is held against: the mean of the training slides, the mean of the window, the nearest tokens, ridge on the neighbours."""


@dataclass
class Errors:
    """Squared errors of hidden tokens, by what told them and by the square of the grid that they lie in."""

    names: tuple[str, ...] = (CONTEXT, *BASELINES, *SHUFFLED)
    squares: dict[tuple[int, int], Floats] = field(default_factory=dict)
    """By slide and square: the squared errors by name, then how many hidden tokens it has, and these tokens' squared lengths, all added up."""
    sums: dict[tuple[int, int], Floats] = field(default_factory=dict)
    """(d,) its hidden tokens added up."""

    def add(self, truth: Floats, told: dict[str, Floats], square: Ints, slide: int) -> None:
        """Take hidden tokens (m, d) of a slide, what each way says of them, and the number of each one's square."""
        each = [np.square(told[name] - truth).sum(axis=1) for name in self.names]
        table = np.stack([*each, np.ones(len(truth)), np.square(truth).sum(axis=1)], axis=1)
        for n in np.unique(square).tolist():
            own, key = square == n, (slide, n)
            self.squares[key] = self.squares.get(key, 0) + table[own].sum(axis=0)
            self.sums[key] = self.sums.get(key, 0) + truth[own].sum(axis=0)

    @property
    def slides(self) -> Ints:
        """(squares,) the slide of each."""
        return np.array([slide for slide, _ in self.squares], np.int64)

    def r_squared(self, weight: Floats) -> dict[str, float]:
        """By name, 1 less the error as a part of the variance about the hidden tokens' own mean; squares count by weight."""
        found = weight @ self._table
        total = float(found[-1]) - float(np.square(weight @ self._means).sum()) / max(1.0, float(found[-2]))
        if total <= 0:
            return dict.fromkeys(self.names, float("nan"))
        return dict(zip(self.names, (1 - found[:-2] / total).tolist(), strict=True))

    @cached_property
    def _table(self) -> Floats:
        return np.stack(list(self.squares.values()))

    @cached_property
    def _means(self) -> Floats:
        return np.stack(list(self.sums.values()))


@dataclass(frozen=True)
class Told:
    """What hidden tokens say of a context."""

    r2: dict[str, Metric]
    """R² of the context, of each baseline and with shuffled places, with 95 % intervals over squares."""
    gain: dict[str, Metric]
    """How much more R² the context has than each of the others."""
    by_slide: dict[int, dict[str, float]]
    """R² in each slide, about its own mean."""
    tokens: int
    """Hidden tokens, each as often as it was hidden."""
    squares: int
    failing: tuple[str, ...]
    """Baselines that the context is not better than: the interval of its gain is not all above 0."""

    def lost(self) -> dict[int, str]:
        """The slides in which a baseline tells hidden tokens better than the context, and which does best there."""
        best = {k: max(BASELINES, key=lambda name: own[name]) for k, own in self.by_slide.items()}  # called at once
        return {k: name for k, name in best.items() if not self.by_slide[k][CONTEXT] > self.by_slide[k][name]}

    @property
    def better(self) -> bool:
        """Whether the context is better than every baseline."""
        return not self.failing


def hide(blocks: Iterator[Block], model: ContextTransformer, part: float, seed: int) -> Iterator[tuple[Block, Floats, Mask]]:
    """Blocks, their standardised tokens, and what is left visible when a part of them is hidden; the seed says which."""
    assert model.ends is not None
    for number, block in enumerate(blocks):
        visible = np.random.default_rng([seed, number]).random(len(block)) >= part
        with torch.inference_mode():
            z = model.ends.standardise(torch.from_numpy(block.tokens.astype(np.float32))).double().numpy()
        yield block, z, visible


@torch.inference_mode()
def tell(
    model: ContextTransformer, block: Block, visible: Mask | None, stride_um: float | None, row: Ints | None = None, col: Ints | None = None
) -> Floats:
    """(m, d) standardised tokens as a context tells them, some hidden or none, at their places or others."""
    at = [torch.from_numpy(np.ascontiguousarray(own if given is None else given))
          for own, given in ((block.tok_row, row), (block.tok_col, col))]  # fmt: skip
    device = model.norm.weight.device
    hidden = None if visible is None else torch.from_numpy(~visible).to(device)
    mixed = model.encode(torch.from_numpy(block.tokens.astype(np.float32)).to(device), at[0], at[1], stride_um, hidden)
    for layer in range(model.depth):
        mixed = model.mix(layer, mixed, at[0], at[1])
    found: Floats = model.finish(mixed).double().cpu().numpy()
    return found


def judge(
    model: ContextTransformer, hidden: Iterator[tuple[Block, Floats, Mask]], ridge: NeighbourRidge, stride_um: float | None, seed: int
) -> Told:
    """Compare what is told of the hidden tokens of some blocks, which may come again with others hidden."""
    errors = Errors()
    window = model.window
    for number, (block, z, visible) in enumerate(hidden):
        at = np.flatnonzero(~visible)
        if not len(at) or not visible.any():
            continue
        row, col = block.tok_row, block.tok_col
        chance = np.random.default_rng([seed, number, 2])
        told = {
            CONTEXT: tell(model, block, visible, stride_um)[at],
            "mean": np.zeros((len(at), z.shape[1])),
            "window_mean": window_mean(z, visible, row, col, window)[at],
            "nearest": nearest(z, visible, row, col)[at],
            "ridge": ridge.predict(z, visible, row, col, at),
        }
        square = (row // window) * (1 << 31) + col // window
        for name, within in zip(SHUFFLED, (square, np.zeros_like(square)), strict=True):
            moved = _permuted(within, chance)
            told[name] = tell(model, block, visible, stride_um, row[moved], col[moved])[at]
        errors.add(z[at], told, square[at], block.slide)
    return _summed(errors, seed)


def _permuted(group: Ints, chance: np.random.Generator) -> NDArray[np.int64]:
    """(m,) a drawn order in which each stays in its group."""
    found = np.empty(len(group), np.int64)
    by_group, by_chance = np.argsort(group, kind="stable"), np.lexsort((chance.random(len(group)), group))
    found[by_group] = by_chance
    return found


def _summed(errors: Errors, seed: int) -> Told:
    """R² and gains with intervals over draws of squares."""
    count = len(errors.squares)
    value = errors.r_squared(np.ones(count)) if count else dict.fromkeys(errors.names, float("nan"))
    chance = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in errors.names}
    for _ in range(ROUNDS if count > 1 else 0):
        times = np.bincount(chance.integers(count, size=count), minlength=count).astype(np.float64)
        for name, drawn in errors.r_squared(times).items():
            draws[name].append(drawn)
    table = {name: np.asarray(values) for name, values in draws.items()}
    r2 = {name: _metric(value[name], table[name]) for name in errors.names}
    gain = {name: _metric(value[CONTEXT] - value[name], table[CONTEXT] - table[name]) for name in (*BASELINES, *SHUFFLED)}
    failing = tuple(name for name in BASELINES if not gain[name].low > 0)
    by_slide = {k: errors.r_squared((errors.slides == k).astype(np.float64)) for k in np.unique(errors.slides).tolist()}
    tokens = int(sum(found[-2] for found in errors.squares.values()))
    return Told(r2, gain, by_slide, tokens, count, failing)


def _metric(value: float, draws: Floats) -> Metric:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return Metric(value, float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5]).tolist()
    return Metric(value, low, high)
