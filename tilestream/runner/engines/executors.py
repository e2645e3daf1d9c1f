"""Where tasks run: in this process, in worker processes of this machine, or on a cluster."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tilestream.config.compute import Compute
from tilestream.runner.engines.clusters import check_main_guard
from tilestream.runner.engines.dask_engine import DaskEngine
from tilestream.runner.engines.engine import Engine, Outcome, run_heard
from tilestream.stages.encoding.in_work import Told
from tilestream.stages.encoding.settled import settle
from tilestream.stages.slide_task import STOP
from tilestream.stages.worker_settings import TASKS, works_here


class InlineEngine(Engine):
    """Tasks in threads of this process: one computes, the next one reads, the one before is written, and beside them a slide is finished."""

    in_process = True

    def __init__(self) -> None:
        STOP.clear()
        self.workers = 1
        self.capacity = TASKS
        self.told = deque()
        self._unsettle: Callable[[], None] = lambda: None
        self._pool = ThreadPoolExecutor(TASKS + 1, thread_name_prefix="lane")
        self._done: queue.SimpleQueue[tuple[Any, Future[Outcome]] | None] = queue.SimpleQueue()

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        future = self._pool.submit(run_heard, self._hear, function, *arguments)
        future.add_done_callback(lambda done: self._done.put((key, done)))

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            ended = self._done.get(timeout=timeout)
        except queue.Empty:
            return None
        return None if ended is None else (ended[0], ended[1].result())

    def _hear(self, told: Told) -> None:
        """What is embedded is kept: whoever stops this process lets it set that aside."""
        self.told.append(replace(told, kept=told.tiles))
        self.wake()

    def wake(self) -> None:
        self._done.put(None)

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        return function(task)

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        return [function(task)]

    def settle(self) -> None:
        self._unsettle = settle()

    def close(self) -> None:
        STOP.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        STOP.clear()
        self._unsettle()


def open_engine(compute: Compute, say: Callable[[str], None] | None = None) -> Engine:
    """The engine that `compute.scheduler` asks for; `say` hears of workers that are waited for or refused.

    Raises
    ------
    ConfigError
        The cluster cannot be reached or started; or processes would start the caller's script anew.
    """
    if works_here(compute):
        return InlineEngine()
    if compute.scheduler.kind == "local":
        check_main_guard()
    return DaskEngine(compute, say or (lambda _: None))
