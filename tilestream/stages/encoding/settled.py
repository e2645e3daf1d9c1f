"""The interpreter while a run goes on in it."""

from __future__ import annotations

import gc
from collections.abc import Callable

OTHERS_FROZEN = 10_000
"""Objects that are out of the collector's reach where somebody put them there; since Python 3.12 some hundreds are from the start."""

RARE = 10_000
"""New objects between two rounds, from which on rounds over all of them are too rare to matter; the command line sets more."""


def settle() -> Callable[[], None]:
    """Leave what libraries made so far out of the garbage collector's rounds (`gc.freeze`); what is returned takes it back in.

    A round over all of it keeps the interpreter from every thread for 0.1 s, about once a slide. So there is one before: what nobody has any
    more, such as the encoder of an earlier run, would otherwise stay in memory for as long.
    """
    if gc.get_threshold()[0] >= RARE:
        return lambda: None
    others = gc.get_freeze_count() > OTHERS_FROZEN
    gc.collect()
    gc.freeze()
    return (lambda: None) if others else gc.unfreeze
