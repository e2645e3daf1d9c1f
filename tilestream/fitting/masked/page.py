"""What `fit` says of a context: lines for a person, JSON for programs, one HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from tilestream.fitting.evaluate import Metric
from tilestream.fitting.masked.judge import BASELINES, CONTEXT, ROUNDS, SHUFFLED, Told
from tilestream.fitting.masked.learn import Learned
from tilestream.fitting.report import table_html

WORDS = {
    CONTEXT: "this context", "mean": "mean of the training slides", "window_mean": "mean of the window", "nearest": "nearest tokens",
    "ridge": "ridge on the neighbours", SHUFFLED[0]: "shuffled within windows", SHUFFLED[1]: "shuffled within blocks", "x": "tiles as they are",
    "context_alone": "context", "x_and_context": "both",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A context and what it is worth."""

    about: str
    """Encoder, shape and slides in one line."""
    told: Told
    neighbours: Mapping[str, Mapping[str, float]]
    probes: Mapping[str, Mapping[str, float]]
    learned: Learned
    trained_on: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether it is better than what needs no context, in one sentence."""
        told = self.told
        if not told.failing:
            best = max(BASELINES, key=lambda name: told.r2[name].value)
            gain = told.gain[best]
            return (
                f"This context tells hidden tokens better than every baseline: R² {told.r2[CONTEXT].value:.3f}, the best of them "
                f"({WORDS[best]}) {told.r2[best].value:.3f}, {gain.value:.3f} more ({gain.low:.3f} to {gain.high:.3f})."
            )
        others = " and ".join(f"{WORDS[name]} ({told.r2[name].value:.3f})" for name in told.failing)
        return f"This context is not better than its baselines: R² {told.r2[CONTEXT].value:.3f}, not above {others}. Do not use it."

    @property
    def positions(self) -> str:
        """Whether places matter to it."""
        used = self.told.gain[SHUFFLED[1]].low > 0
        inside = self.told.gain[SHUFFLED[0]].low > 0
        if not used:
            return "It does no worse when tokens are shuffled: places are not used."
        return (
            f"With tokens shuffled it does worse: R² {self.told.r2[SHUFFLED[1]].value:.3f} within blocks, {self.told.r2[SHUFFLED[0]].value:.3f} within windows"
            + ("." if inside else ", which is no clear loss: where a token lies in its window is hardly used.")
        )

    def metrics(self) -> dict[str, Any]:
        """For the header of its file and for programs."""
        told = self.told
        return {
            "better_than_baselines": told.better,
            "verdict": self.verdict,
            "positions": self.positions,
            "hidden_tokens": told.tokens,
            "r2": {name: _plain(metric) for name, metric in told.r2.items()},
            "gain": {name: _plain(metric) for name, metric in told.gain.items()},
            "by_slide": _finite(
                {slide: self.told.by_slide[k] for k, slide in enumerate(self.trained_on["held_out"]) if k in told.by_slide}
            ),
            "neighbours": _finite(self.neighbours),
            "probes": _finite(self.probes),
        }

    def lines(self) -> list[str]:
        """What a person reads at the end."""
        told = self.told
        others = ", ".join(f"{WORDS[name]} {told.r2[name].value:.3f}" for name in BASELINES)
        lines = [
            self.about,
            f"R² of {told.tokens:,} hidden tokens of slides never seen: {told.r2[CONTEXT]}; {others}",
            self.verdict,
            self.positions,
        ]
        x, context = self.neighbours["x"], self.neighbours["context"]
        if "one_class" in x:
            lines.append(
                f"neighbours of one class, as a part of any two tiles: {x['one_class']:.2f} apart as they are, {context['one_class']:.2f} in context; across a "
                f"border {x['border_over_one_class']:.2f} times as far, {context['border_over_one_class']:.2f} times in context "
                f"(AUROC of a border {x['border_auroc']:.3f}, {context['border_auroc']:.3f})"
            )
        else:
            lines.append(
                f"neighbours, as a part of any two tiles: {x['neighbours']:.2f} apart as they are, {context['neighbours']:.2f} in context"
            )
        if self.probes:
            each = ", ".join(f"{WORDS[_named(name)]} {found['balanced_accuracy']:.3f}" for name, found in self.probes.items())
            lines.append(f"balanced accuracy of a linear probe of tile classes on slides never seen: {each}")
        learned = self.learned
        lines.append(
            f"learned from {learned.tokens:,} tokens ({learned.passes} passes, {learned.steps} steps) in {learned.seconds:.0f} s, {learned.tokens / max(1e-9, learned.seconds):,.0f} tokens/s"
        )
        return [*lines, *(f"note: {note}" for note in self.notes)]


def lost_words(told: Told, held_out: Sequence[str]) -> list[str]:
    """Of each held-out slide in which a baseline is better, a sentence, ten at most."""
    lost = [
        f"in {held_out[k]} a baseline tells hidden tokens better: {WORDS[name]}, R² {told.by_slide[k][name]:.3f}; this context {told.by_slide[k][CONTEXT]:.3f}"
        for k, name in told.lost().items()
    ]
    return [*lost[:10], *([f"and in {len(lost) - 10} other slides"] if len(lost) > 10 else [])]


def metrics_json(judged: Judged, settings: Mapping[str, Any]) -> str:
    """Everything, for programs."""
    found = {
        "tilestream": "fit", "context": judged.about, "config": dict(settings), "metrics": judged.metrics(), "trained_on": dict(judged.trained_on),
        "learned": vars(judged.learned), "notes": list(judged.notes),
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False)


def report_html(judged: Judged) -> str:
    """The page."""
    page = Template(files("tilestream.fitting").joinpath("assets/context.html").read_text(encoding="utf-8"))
    told, learned = judged.told, judged.learned
    notes = "".join(f"<li>{escape(note)}</li>" for note in (judged.positions, *judged.notes))
    hidden = table_html(
        ["", "R²", "how much more the context has"],
        [[WORDS[name], told.r2[name], told.gain.get(name, "")] for name in (CONTEXT, *BASELINES, *SHUFFLED)],
    )
    ids = judged.trained_on["held_out"]
    by_slide = table_html(
        ["slide", *(WORDS[name] for name in (CONTEXT, *BASELINES))],
        [[ids[k], *(f"{own[name]:.3f}" for name in (CONTEXT, *BASELINES))] for k, own in told.by_slide.items()],
    )
    probes = ""
    if judged.probes:
        probes = f"<h2>Linear probe of tile classes</h2>{_by_name(judged.probes)}"
    facts = {
        "slides": len(judged.trained_on["slides"]), "slides held out": len(judged.trained_on["held_out"]), "tokens": judged.trained_on["tokens"], "passes": learned.passes,
        "steps": learned.steps, "seconds": round(learned.seconds), "tokens a second": round(learned.tokens / max(1e-9, learned.seconds)),
    }  # fmt: skip
    return page.substitute(
        title="A context by masked tokens", about=escape(judged.about), verdict=escape(judged.verdict), notes=f"<ul class='note'>{notes}</ul>",
        hidden=hidden, by_slide=by_slide, rounds=ROUNDS, neighbours=_by_name(judged.neighbours), probes=probes, learning=table_html(["", ""], list(facts.items())),
    )  # fmt: skip


def _by_name(found: Mapping[str, Mapping[str, float]]) -> str:
    """A row a measure, a column a kind of vectors."""
    measures: Sequence[str] = list(next(iter(found.values())))
    return table_html(
        ["", *(WORDS[_named(name)] for name in found)],
        [[measure.replace("_", " "), *(f"{own[measure]:.3f}" for own in found.values())] for measure in measures],
    )


def _named(name: str) -> str:
    return "context_alone" if name == CONTEXT else name


def _plain(metric: Metric) -> dict[str, float | None]:
    return {key: round(value, 5) if math.isfinite(value) else None for key, value in vars(metric).items()}


def _finite(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {key: round(value, 5) if math.isfinite(value) else None for key, value in own.items()} for name, own in found.items()}
