"""Waiting for workers, which may stand in a queue for hours: how long it takes is said, less and less often."""

from __future__ import annotations

import time
from collections.abc import Callable

from tilestream.errors import InterruptedRunError

FIRST, LAST = 10.0, 600.0
"""Seconds until waiting is first told of, and the longest time between two such lines; in between it doubles."""


class Patience:
    """Tells of a wait at growing intervals, and ends it after `limit` seconds where there is such a limit."""

    def __init__(
        self, limit: float | None, expected: int | None, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._say, self._clock = limit, say, clock
        self._of = "" if expected is None else f" of {expected}"
        self._since: float | None = None
        self._next = FIRST

    def wait(self, there: int) -> None:
        """Hear that nobody can work yet, and that so many workers are there. Raises InterruptedRunError where that lasts too long."""
        if self._since is None:
            self._since, self._next = self._clock(), FIRST
        waited = self._clock() - self._since
        if self._limit is not None and waited > self._limit:
            raise InterruptedRunError(
                f"{there}{self._of} workers after {duration(waited)}, and compute.wait is {duration(self._limit)}. "
                "What is finished is kept; the same command resumes."
            )
        if waited >= self._next:
            self._next = waited + min(self._next, LAST)
            self._say(f"{there}{self._of} workers, {duration(waited)}")

    def end(self) -> None:
        """Hear that somebody can work."""
        self._since = None


def duration(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2 h 5 min."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
