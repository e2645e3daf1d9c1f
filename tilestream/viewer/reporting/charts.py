"""Drawings of the report: bars with their legend, and throughput over the time in work. HTML and SVG, no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

from tilestream.buffers import counted

PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#bab0ac", "#1f77b4")

STATUS_COLOURS = {"ok": "#54a24b", "padded": "#a8cfa1", "decode_error": "#e45756", "timeout": "#f58518", "nonfinite": "#b279a2"}
"""Of tiles, by what became of them."""

PART_COLOURS = {
    "starting": "#bab0ac", "planning": "#eeca3b", "reading": "#f58518", "computing": "#4c78a8", "writing": "#54a24b", "finishing": "#b279a2",
    "shutting down": "#9d755d",
}  # fmt: skip
"""Of what the wall clock of a run goes into."""

PAUSE = 60.0
"""Seconds without a shard after which work counts as interrupted, where shards come more often than that."""


def duration_words(seconds: float) -> str:
    """A time for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def by_status(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Tiles by status, those that are well first."""
    order = list(STATUS_COLOURS)
    return sorted(counts.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def stacked_bar(parts: Iterable[tuple[str, float]], colours: Mapping[str, str]) -> str:
    """Values as one bar; each part tells its name and value when it is pointed at."""
    shown = [(name, value) for name, value in parts if value > 0]
    whole = sum(value for _, value in shown)
    if whole <= 0:
        return ""
    cells = "".join(
        f'<i style="width:{100 * value / whole:.2f}%;background:{colours.get(name, PALETTE[-1])}" title="{escape(name, quote=True)}: {value:,.4g}"></i>'
        for name, value in shown
    )
    return f'<div class="bar">{cells}</div>'


def legend(items: Iterable[tuple[str, str]], colours: Mapping[str, str]) -> str:
    """What the colours of a bar mean: names with words behind them."""
    cells = "".join(
        f'<span><i style="background:{colours.get(name, PALETTE[-1])}"></i>{escape(name)}{f" {escape(words)}" if words else ""}</span>'
        for name, words in items
    )
    return f'<div class="legend">{cells}</div>'


def nice_ceiling(value: float) -> float:
    """The least round number that is not below a value: one digit, 1.5 or 2.5, times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def work_time(events: Sequence[tuple[float, int]]) -> tuple[list[tuple[float, int]], list[float]]:
    """Events (time, tiles) on a clock that stands while nothing was worked on, and when it was stopped, s of that clock."""
    gaps = sorted(later[0] - earlier[0] for earlier, later in pairwise(events))
    usual = gaps[len(gaps) // 2] if gaps else 0.0
    longest = max(PAUSE, 20 * usual)
    clock, before, placed, stops = 0.0, events[0][0], [], []
    for when, tiles in events:
        if when - before > longest:
            stops.append(clock)
            clock += usual
        else:
            clock += when - before
        placed.append((clock, tiles))
        before = when
    return placed, stops


def throughput_chart(events: Sequence[tuple[float, int]]) -> str:
    """Tiles a second over the time in work, from when shards were committed; empty where that is not known."""
    if len(events) < 3:
        return ""
    placed, stops = work_time(sorted(events))
    whole = placed[-1][0]
    if whole < 1:
        return ""
    bins = max(3, min(60, len(placed) // 2))
    counts = [0.0] * bins
    for when, tiles in placed[1:]:  # what was embedded before the first one was committed took a time that is not known
        counts[min(bins - 1, int(when / whole * bins))] += tiles
    rates = [count / (whole / bins) for count in counts]
    mean = sum(counts) / whole
    top = nice_ceiling(max(rates))
    left, right, high, low = 64, 990, 14, 160
    step = (right - left) / bins
    bars = "".join(
        f'<rect x="{left + k * step + 1:.1f}" y="{low - (low - high) * rate / top:.1f}" width="{max(1.0, step - 2):.1f}" '
        f'height="{(low - high) * rate / top:.1f}"><title>{rate:,.3g} tiles/s</title></rect>'
        for k, rate in enumerate(rates)
    )
    lines = "".join(
        f'<path d="M{left} {low - (low - high) * part:.1f}H{right}" stroke="#dfe5ec"/>'
        f'<text x="{left - 8}" y="{low - (low - high) * part + 4:.1f}" text-anchor="end">{top * part:,.4g}</text>'
        for part in (0.0, 0.5, 1.0)
    )
    ends = "".join(
        f'<text x="{left + (right - left) * part:.0f}" y="{low + 18}" text-anchor="{anchor}">{duration_words(whole * part) if part else "0"}</text>'
        for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    breaks = "".join(
        f'<path d="M{left + (right - left) * stop / whole:.1f} {high}V{low}" stroke="#5d6b7c" stroke-dasharray="4 3"><title>work stopped here, and went on later</title></path>'
        for stop in stops
    )
    middle = low - (low - high) * mean / top
    told = f"{mean:,.3g} tiles/s on average" + (f"; work stopped and went on {counted(len(stops), 'time')} (dashed)" if stops else "")
    return (
        f'<h2>Throughput</h2><div class="box"><p class="soft">Tiles a second over the time in work: {told}.</p>'
        f'<svg viewBox="0 0 1000 184" width="100%" role="img" aria-label="tiles a second over the time in work"><g font-size="12" fill="#5d6b7c">{lines}{ends}</g>'
        f'<g fill="#4c78a8">{bars}</g>{breaks}<path d="M{left} {middle:.1f}H{right}" stroke="#b3261e" stroke-width="1.5"/></svg></div>'
    )
