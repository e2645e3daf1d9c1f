"""The stages of a run that can be started over."""

from __future__ import annotations

import re

from tilestream.config.heads import NAME

ALL = "all"

STAGES = (ALL, "tiles", "context", "windows", "pool", "heads")
"""What may be started over; also `heads:<name>`, one of them."""


def is_stage(word: str) -> bool:
    """Whether a word names something that can be started over."""
    return word in STAGES or re.fullmatch(f"heads:{NAME}", word) is not None


def restarts(restart: str, stage: str) -> bool:
    """Whether a stage, as a store names it, is started over for itself."""
    head = stage.removeprefix("head-")
    return stage == restart or (head != stage and restart in ("heads", f"heads:{head}"))
