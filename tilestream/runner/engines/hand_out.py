"""Which task is started next: what finishes slides, what follows, then new slides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tilestream.runner.engines.engine import Engine
from tilestream.stages.worker_settings import LANES

if TYPE_CHECKING:
    from tilestream.runner.pipeline import Job

LONG_TASK = 2.0
"""Seconds of computing from which on it matters more that tasks are shared out evenly than that reading is far ahead."""


class HandOut:
    """Keeps the workers of an engine busy.

    Order
    -----
    What finishes a slide goes first and takes no one's place: it computes next to nothing. Stages that follow go before new slides.

    Memory bound
    ------------
    `engine.capacity` tasks that embed are in flight, and twice as many that finish slides as there are workers.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.in_flight = self.embedding = 0
        """Tasks that have not ended; those of them that embed tiles."""
        self.task_seconds = 0.0
        """What the last one of those computed for."""
        self._closing, self._follow_up, self._first = deque["Job"](), deque["Job"](), deque["Job"]()

    def add(self, jobs: Iterable[Job]) -> None:
        """Hear of the jobs of a stage that may start."""
        for job in jobs:
            (self._follow_up if job.embeds else self._closing).append(job)

    def next(self, more: Callable[[], Iterable[Job]], over: Callable[[], bool]) -> Job | None:
        """The next task to start; None where there is none or no room. `more` gives a new slide's jobs, `over` says whether none will come."""
        while True:
            if self._closing and self.in_flight - self.embedding < 2 * self.engine.workers:
                job = self._closing.popleft()
            else:
                if not self._follow_up and not self._first and self.embedding < self._room(last=False):
                    self._first.extend(more())
                waiting = self._follow_up or self._first
                last = len(self._follow_up) + len(self._first) <= self.engine.workers and over()
                if not waiting or self.embedding >= self._room(last=last):
                    return None
                job = waiting.popleft()
            if not job.slide.given_up:
                self.in_flight += 1
                self.embedding += job.embeds
                return job

    def ended(self, job: Job) -> None:
        """Hear that a task ended."""
        self.in_flight -= 1
        self.embedding -= job.embeds

    def _room(self, *, last: bool) -> int:
        """Tasks that embed that may be in flight. Where each takes long, none waits at a worker behind another while a second worker has nothing to do."""
        workers = self.engine.workers
        if workers == 1 or self.task_seconds < LONG_TASK:
            return self.engine.capacity
        return min(self.engine.capacity, workers if last else workers * LANES)
