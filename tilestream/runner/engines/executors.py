"""Where tasks run: in this process, in worker processes of this machine, or on a cluster. One interface, bounded work in flight."""

from __future__ import annotations

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from tilestream.config.schema import Compute, SchedulerSpec
from tilestream.errors import ConfigError, InterruptedRunError, TilestreamError, UnfitWorkerError, storage_error
from tilestream.runner.engines.clusters import address_in_file, check_main_guard, start_cluster
from tilestream.stages.hardware import worker_address
from tilestream.stages.slide_task import STOP
from tilestream.stages.worker_settings import LANES, worker_count, works_here

RETRIES = 2
"""Times that a task is tried again after an error that is not ours, such as a worker that died."""


DEATHS = 4
"""Workers that one task may kill: distributed's `allowed-failures` is 3."""

ALONE = 300.0
"""Seconds that a run waits for a worker when none is left."""

LOST = "the scheduler was lost. What is finished is kept; the same command resumes once a cluster is there."


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a value, or with an error meant for the user."""

    value: Any = None
    error: TilestreamError | None = None
    worker: str = ""
    """Address of the worker that cannot do this task or any other of its run; empty where it can."""


def run_task(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Run a task; our own errors become values, so that no scheduler retries what cannot succeed."""
    try:
        return Outcome(value=function(*arguments))
    except UnfitWorkerError as error:
        return Outcome(error=error, worker=worker_address())
    except TilestreamError as error:
        return Outcome(error=error)
    except OSError as error:
        if (meant := storage_error(error)) is None:
            raise
        return Outcome(error=meant)


class Engine(ABC):
    """Runs `function(*arguments)`, all of them picklable. `capacity` tasks in flight keep every worker busy; more only cost memory."""

    capacity: int
    workers: int
    in_process: bool
    """Whether tasks run in this process."""

    @abstractmethod
    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a task; `key` comes back with its outcome."""

    @abstractmethod
    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        """Key and outcome of the next task to end, in order of completion; None where none ends within `timeout` seconds or before `wake`."""

    @abstractmethod
    def wake(self) -> None:
        """From any thread: end a wait that goes on, or else the next one."""

    @abstractmethod
    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        """Run one task on one worker and return its value, raising its error."""

    @abstractmethod
    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        """Run one task on every worker at once and return the values, raising the first error."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was started here; tasks still running are abandoned."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InlineEngine(Engine):
    """Tasks in threads of this process: one computes, the next one reads, the one before is written."""

    in_process = True

    def __init__(self) -> None:
        STOP.clear()
        self.workers = 1
        self.capacity = LANES + 1
        self._pool = ThreadPoolExecutor(LANES + 1, thread_name_prefix="lane")
        self._done: queue.SimpleQueue[tuple[Any, Future[Outcome]] | None] = queue.SimpleQueue()

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        future = self._pool.submit(run_task, function, *arguments)
        future.add_done_callback(lambda done: self._done.put((key, done)))

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            ended = self._done.get(timeout=timeout)
        except queue.Empty:
            return None
        return None if ended is None else (ended[0], ended[1].result())

    def wake(self) -> None:
        self._done.put(None)

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        return function(task)

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        return [function(task)]

    def close(self) -> None:
        STOP.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        STOP.clear()


@dataclass(frozen=True)
class _Submitted:
    """A task that was started and has not ended."""

    key: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Any
    allowed: frozenset[str]
    """Addresses of the workers that may do it; empty for all."""


class DaskEngine(Engine):
    """Tasks on a `distributed` cluster, ours or one that was running already."""

    in_process = False

    def __init__(self, spec: SchedulerSpec, workers: int, say: Callable[[str], None]) -> None:
        import distributed

        self._cluster: Any = None
        if spec.kind == "address":
            self._client = distributed.Client(spec.address, set_as_default=False)
        elif spec.kind == "file":
            self._client = distributed.Client(address_in_file(spec.path or ""), set_as_default=False)
        else:
            self._cluster = start_cluster(spec, workers)
            self._client = distributed.Client(self._cluster, set_as_default=False)
        self._client.wait_for_workers(1, timeout=300)
        self.workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
        self.capacity = self.workers * (LANES + 2)
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._say = say
        self._submitted: dict[str, _Submitted] = {}
        self._unfit: set[str] = set()
        """Addresses of workers that get no task."""
        self._run = os.urandom(4).hex()
        self._count = 0
        self._alone_since: float | None = None

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._count += 1
        name = f"{function.__name__}-{self._run}-{self._count}"
        allowed = self._fit_workers() if self._unfit else None
        future = self._client.submit(
            run_task, function, *arguments, key=name, retries=RETRIES, pure=False, workers=allowed, allow_other_workers=False
        )
        self._submitted[name] = _Submitted(key, function, arguments, future, frozenset(allowed or ()))
        future.add_done_callback(self._done.put)

    def _fit_workers(self) -> list[str]:
        """Addresses of the workers that are there and can do the run's tasks."""
        return [address for address in self._client.scheduler_info(n_workers=-1)["workers"] if address not in self._unfit]

    def _refuse(self, outcome: Outcome) -> None:
        """Give a worker no more tasks. Raises its error where it was the last one."""
        assert outcome.error is not None
        if outcome.worker not in self._unfit:
            self._unfit.add(outcome.worker)
            self._say(str(outcome.error))
        if not self._fit_workers():
            raise outcome.error
        self.workers = len(self._fit_workers())
        self.capacity = self.workers * (LANES + 2)

    def _submit_again(self, name: str) -> None:
        """Start a task anew, on workers that can do it."""
        task = self._submitted.pop(name)
        self.submit(task.key, task.function, *task.arguments)

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            future = self._done.get(timeout=timeout)
        except queue.Empty:
            self._check_cluster()
            return None
        if future is None:
            return None
        if future.status in ("lost", "pending"):  # the worker that held the result died; another one does the task again
            self._check_cluster()
            threading.Thread(target=self._await_again, args=[future], daemon=True).start()
            return None
        if future.key not in self._submitted:  # it was started anew
            return None
        try:
            outcome = _outcome(future)
        except InterruptedRunError as error:
            outcome = Outcome(error=error)
        if outcome.worker:
            self._refuse(outcome)
            self._submit_again(future.key)
            return None
        return self._submitted.pop(future.key).key, outcome

    def wake(self) -> None:
        self._done.put(None)

    def _await_again(self, future: Any) -> None:
        """Hand a future on once more when it is done again, or cannot be."""
        with suppress(CancelledError, OSError):
            future.exception()  # waits; whether there is one is seen where outcomes are
        self._done.put(future)

    def _check_cluster(self) -> None:
        """End a wait that would never end: no scheduler, or no worker for `ALONE` seconds. Raises InterruptedRunError."""
        if self._client.status != "running":
            raise InterruptedRunError(LOST)
        try:
            workers = self._fit_workers()
        except OSError as error:
            raise InterruptedRunError(LOST) from error
        if workers:
            self._alone_since = None
            for name in [name for name, task in self._submitted.items() if task.allowed and not task.allowed.intersection(workers)]:
                self._submitted[name].future.cancel()
                self._submit_again(name)
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > ALONE:
            raise InterruptedRunError(f"no worker is left for {ALONE:.0f} s. What is finished is kept; the same command resumes.")

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        return _value(self._client.submit(run_task, function, task, pure=False))

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        addresses = list(self._client.scheduler_info(n_workers=-1)["workers"])
        started = [self._client.submit(run_task, function, task, pure=False, workers=[a], allow_other_workers=False) for a in addresses]
        outcomes = [_outcome(future) for future in started]
        for outcome in outcomes:
            if outcome.worker:
                self._refuse(outcome)
        return [_value_of(outcome) for outcome in outcomes if not outcome.worker]

    def close(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _value(future: Any) -> Any:
    """What a task gave, when it is there; raises its error, or InterruptedRunError."""
    return _value_of(_outcome(future))


def _value_of(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _outcome(future: Any) -> Outcome:
    """How a task ended, when it has. Raises InterruptedRunError where that cannot be known."""
    try:
        error = future.exception()
        if error is None:
            outcome: Outcome = future.result()
            return outcome
    except (CancelledError, OSError) as broken:  # what tasks raise is handed over; this is the connection
        raise InterruptedRunError(LOST) from broken
    if isinstance(error, CancelledError):
        raise InterruptedRunError(LOST) from error
    from distributed import KilledWorker

    died = isinstance(error, KilledWorker)
    words = f"{future.key} killed {DEATHS} workers, one after another" if died else f"{future.key}: {type(error).__name__}: {error}"
    raise InterruptedRunError(
        f"{words}. Where a decoder crashes, compute.isolate: true gives up the tile alone. The same command resumes."
    ) from error


def open_engine(compute: Compute, say: Callable[[str], None] | None = None) -> Engine:
    """The engine that `compute.scheduler` asks for; `say` hears of workers that are refused.

    Raises
    ------
    ConfigError
        The cluster cannot be reached or its class cannot be imported; or processes would start the caller's script anew.
    """
    spec = compute.scheduler
    if works_here(compute):
        return InlineEngine()
    if spec.kind == "local":
        check_main_guard("compute.scheduler: local")
    workers = worker_count(compute)
    try:
        return DaskEngine(spec, workers, say or (lambda _: None))
    except (OSError, TimeoutError) as error:
        where = spec.address or spec.path or spec.cls
        raise ConfigError(f"compute.scheduler: no cluster answers at {where}: {error}. Start one, or set it to local.") from error
