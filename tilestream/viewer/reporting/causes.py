"""Why slides were refused and tiles failed: the same cause once, with the slides that it holds of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

SHOWN = 6
"""Slides that are named beside a cause."""


@dataclass
class Cause:
    """One cause and where it was met."""

    kind: str
    """What it did: slide refused, slide unfinished, tiles failed, or a warning."""
    words: str
    """As it was told of the first slide."""
    slides: list[str] = field(default_factory=list)
    tiles: int = 0
    """Tiles that failed of it, as far as causes of tiles are kept."""


def cause_key(words: str, slide: str, address: str) -> str:
    """What is the same in the words of one cause told of several slides: without names, paths and numbers."""
    for own in sorted({slide, address, address.rsplit("/", 1)[-1]} - {""}, key=len, reverse=True):
        words = words.replace(own, "")
    return re.sub(r"\S*/\S*|0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", words).strip(" :#")


def group_causes(told: Iterable[tuple[str, str, str, str, int]]) -> list[Cause]:
    """Causes from (kind, words, slide, address, tiles), the most frequent first within each kind."""
    found: dict[tuple[str, str], Cause] = {}
    for kind, words, slide, address, tiles in told:
        cause = found.setdefault((kind, cause_key(words, slide, address)), Cause(kind, words))
        cause.tiles += tiles
        if not cause.slides or cause.slides[-1] != slide:
            cause.slides.append(slide)
    order = {"slide refused": 0, "slide unfinished": 1, "tiles failed": 2}
    return sorted(found.values(), key=lambda cause: (order.get(cause.kind, 9), -len(cause.slides), -cause.tiles))


def causes_table(causes: list[Cause]) -> str:
    """The causes as a table; empty where there are none."""
    if not causes:
        return ""
    rows = "".join(
        f"<tr><td>{escape(cause.kind)}</td><td class=n>{len(cause.slides):,}</td><td class=n>{f'{cause.tiles:,}' if cause.tiles else '-'}</td>"
        f"<td class=why>{escape(cause.words)}</td><td>{_names(cause.slides)}</td></tr>"
        for cause in causes
    )
    return f"<h2>Causes</h2><table class=causes><thead><tr><th>what</th><th>slides</th><th>tiles</th><th>why, as told of the first</th><th>slides</th></tr></thead><tbody>{rows}</tbody></table>"


def _names(slides: list[str]) -> str:
    shown = ", ".join(f'<a href="#{escape(anchor(slide), quote=True)}">{escape(slide)}</a>' for slide in slides[:SHOWN])
    return shown + (f" and {len(slides) - SHOWN:,} more" if len(slides) > SHOWN else "")


def anchor(slide: str) -> str:
    """The name by which a slide's row is linked to."""
    return "slide-" + re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"_{ord(found[0]):x}_", slide)
