"""Where the time goes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by stage. Reading overlaps computing, so they need not add up to the wall clock."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)


class Wall:
    """The wall clock of a run, cut into parts that follow one another: every moment belongs to one of them, so that they add up.

    Parameters
    ----------
    began : float
        Of `time.perf_counter`: when the first part began.
    """

    def __init__(self, began: float | None = None) -> None:
        self._since = time.perf_counter() if began is None else began
        self._part = "starting"
        self.seconds: dict[str, float] = {}
        """By part, as far as they have ended."""
        self.marks: dict[str, float] = {}
        """Of some of what went on in them, in order."""
        self._marked = self._since
        self._workers = 0
        self._worked: dict[str, float] = {}

    def enter(self, part: str, workers: int = 0) -> None:
        """A part begins, in which so many workers are at work, and the one before it ends."""
        now = time.perf_counter()
        spent = now - self._since
        self.seconds[self._part] = self.seconds.get(self._part, 0.0) + spent
        self._worked[self._part] = self._worked.get(self._part, 0.0) + spent * self._workers
        self._since, self._part, self._workers = now, part, workers

    def at_work(self, part: str) -> float:
        """Workers that were at work in a part, on average; 0 where that was not told."""
        return self._worked.get(part, 0.0) / spent if (spent := self.seconds.get(part, 0.0)) else 0.0

    def mark(self, what: str) -> None:
        """What went on since the last mark, or from the start, is over."""
        now = time.perf_counter()
        self.marks[what], self._marked = now - self._marked, now


LONGEST_START = 5.0
"""Seconds that an interpreter may wait for its files before its first line; what was before that was another program's."""


def process_began() -> float:
    """When this program was started, on the clock of `time.perf_counter`; now, where the system does not say.

    The kernel knows when the process was started, which may have been a shell's that handed it over (`exec`): one that is too old for what it
    has computed counts from that alone.
    """
    now = time.perf_counter()
    try:
        with open("/proc/self/stat", encoding="ascii") as stat:  # noqa: PTH123  # a pseudo-file of the kernel
            ticks = int(stat.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        return now
    computed = time.process_time()
    return now - (max(0.0, age) if age - computed < LONGEST_START else computed)
