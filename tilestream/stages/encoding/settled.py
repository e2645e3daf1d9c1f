"""The interpreter while a run goes on in it: what keeps it from those who wait for it is put off or cut short."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

OTHERS_FROZEN = 10_000
"""Objects that are out of the collector's reach where somebody put them there; since Python 3.12 some hundreds are from the start."""

SWITCH_SECONDS = 0.001
"""For how long a thread keeps the interpreter while others wait, beside a device: a fifth of Python's own choice."""


def settle(*, on_device: bool) -> Callable[[], None]:
    """Set the interpreter for a run; what is returned sets it as it was.

    What libraries made so far is left out of the garbage collector's rounds (`gc.freeze`): a round over it keeps the interpreter for 0.1 s,
    about once a slide. Beside a device, threads that compute in Python let those that feed it have their turn sooner.
    """
    others, before = gc.get_freeze_count() > OTHERS_FROZEN, sys.getswitchinterval()
    gc.freeze()
    if on_device:
        sys.setswitchinterval(min(before, SWITCH_SECONDS))

    def unsettle() -> None:
        if not others:
            gc.unfreeze()
        sys.setswitchinterval(before)

    return unsettle
