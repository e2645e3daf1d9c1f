"""The stages of a run: what they are called, and which can be started over."""

from __future__ import annotations

import re

NAME = r"[a-z][a-z0-9_]*"
"""What may be the name of a head, a context or a pool."""

ALL = "all"

STAGES = (ALL, "tiles", "context", "windows", "pool", "heads")
"""What may be started over; also `heads:<name>`, one of them."""


def stage_called(kind: str, name: str | None) -> str:
    """The stage of a context or a pool, as the ledger, its recipe and its arrays have it: `context`, or `context-wide` of one that is kept as `wide`."""
    return kind if name is None else f"{kind}-{name}"


def is_stage(word: str) -> bool:
    """Whether a word names something that can be started over."""
    return word in STAGES or re.fullmatch(f"heads:{NAME}", word) is not None


def restarts(restart: str, stage: str) -> bool:
    """Whether a stage of the config, as a store names it, is started over for itself."""
    head = stage.removeprefix("head-")
    return stage.partition("-")[0] == restart or (head != stage and restart in ("heads", f"heads:{head}"))
