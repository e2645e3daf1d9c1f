"""Whose turn it is on a core, where decoders and the threads that feed a device are more than there are cores."""

from __future__ import annotations

import contextlib
import os
import sys

STARVED_RATIO = 4
"""Times as long as it computes that a decoder may wait for a core; next to the threads that feed a device, it waits for less than it computes."""

STARVED_SECONDS = 2.0
"""Of waiting, after each of which it is looked at."""


class Turns:
    """Has this process, a decoder, leave its core at once to whoever wakes up, and watches what that costs it.

    Threads that feed a device work for microseconds at a time and sleep in between. Where all cores decode, each of their turns begins up to
    3 ms late, a turn of the scheduler's; an H100 waited a tenth of its time for them. A process of the idle policy (sched(7)) is left at
    once, and takes what cores have left: next to programs of others that may be nothing, and an ordinary user cannot take the policy
    back. `starved` says so, for a process of its own turn to be put in its place.

    Parameters
    ----------
    yields : bool
        Whether it does so. Without effect where the system does not tell how long a process waited (`/proc/[pid]/schedstat` of Linux).
    """

    def __init__(self, *, yields: bool) -> None:
        self._computed, self._waited = _times() or (0, 0)
        self._watched = yields and sys.platform == "linux" and _times() is not None
        if self._watched:
            with contextlib.suppress(OSError):  # forbidden in a container
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def starved(self) -> bool:
        """Whether it hardly had a turn lately: others want all cores."""
        now = _times() if self._watched else None
        if now is None or now[1] - self._waited < STARVED_SECONDS * 1e9:
            return False
        computed, waited = now[0] - self._computed, now[1] - self._waited
        self._computed, self._waited = now
        return waited > STARVED_RATIO * computed


def _times() -> tuple[int, int] | None:
    """Nanoseconds that this process has computed, and that it has waited for a core; None where the system does not say."""
    try:
        with open("/proc/self/schedstat", encoding="ascii") as told:  # noqa: PTH123  # read every few milliseconds
            computed, waited = told.read().split()[:2]
        return int(computed), int(waited)
    except (OSError, ValueError):
        return None
