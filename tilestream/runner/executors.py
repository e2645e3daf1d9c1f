"""Where tasks run: in this process, in worker processes of this machine, or on a cluster. One interface, bounded work in flight."""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from tilestream.config.local_files import read_small_file
from tilestream.config.schema import Compute, SchedulerSpec
from tilestream.errors import ConfigError, InterruptedRunError, TilestreamError, storage_error
from tilestream.stages.slide_task import STOP
from tilestream.stages.worker_settings import LANES, worker_count

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


def run_task(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Run a task; our own errors become values, so that no scheduler retries what cannot succeed."""
    try:
        return Outcome(value=function(*arguments))
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

    @abstractmethod
    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a task; `key` comes back with its outcome."""

    @abstractmethod
    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        """Key and outcome of the next task to end, in order of completion; None where none ends within `timeout` seconds."""

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

    def __init__(self) -> None:
        STOP.clear()
        self.workers = 1
        self.capacity = LANES + 1
        self._pool = ThreadPoolExecutor(LANES + 1, thread_name_prefix="lane")
        self._done: queue.SimpleQueue[tuple[Any, Future[Outcome]]] = queue.SimpleQueue()

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        future = self._pool.submit(run_task, function, *arguments)
        future.add_done_callback(lambda done: self._done.put((key, done)))

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            key, future = self._done.get(timeout=timeout)
        except queue.Empty:
            return None
        return key, future.result()

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        return function(task)

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        return [function(task)]

    def close(self) -> None:
        STOP.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        STOP.clear()


class DaskEngine(Engine):
    """Tasks on a `distributed` cluster, ours or one that was running already."""

    def __init__(self, spec: SchedulerSpec, workers: int) -> None:
        import distributed

        self._cluster: Any = None
        if spec.kind == "address":
            self._client = distributed.Client(spec.address, set_as_default=False)
        elif spec.kind == "file":
            self._client = distributed.Client(_address_in_file(spec.path or ""), set_as_default=False)
        else:
            self._cluster = _start_cluster(spec, workers)
            self._client = distributed.Client(self._cluster, set_as_default=False)
        self._client.wait_for_workers(1, timeout=300)
        self.workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
        self.capacity = self.workers * (LANES + 2)
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._keys: dict[str, Any] = {}
        self._run = os.urandom(4).hex()
        self._count = 0
        self._alone_since: float | None = None

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._count += 1
        name = f"{function.__name__}-{self._run}-{self._count}"
        future = self._client.submit(run_task, function, *arguments, key=name, retries=RETRIES, pure=False)
        self._keys[name] = key
        future.add_done_callback(self._done.put)

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            future = self._done.get(timeout=timeout)
        except queue.Empty:
            self._check_cluster()
            return None
        if future.status in ("lost", "pending"):  # the worker that held the result died; another one does the task again
            self._check_cluster()
            threading.Thread(target=self._await_again, args=[future], daemon=True).start()
            return None
        key = self._keys.pop(future.key)
        try:
            return key, _outcome(future)
        except InterruptedRunError as error:
            return key, Outcome(error=error)

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
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except OSError as error:
            raise InterruptedRunError(LOST) from error
        if workers:
            self._alone_since = None
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > ALONE:
            raise InterruptedRunError(f"no worker is left for {ALONE:.0f} s. What is finished is kept; the same command resumes.")

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        return _value(self._client.submit(run_task, function, task, pure=False))

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        addresses = list(self._client.scheduler_info(n_workers=-1)["workers"])
        started = [self._client.submit(run_task, function, task, pure=False, workers=[a], allow_other_workers=False) for a in addresses]
        return [_value(future) for future in started]

    def close(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _value(future: Any) -> Any:
    """What a task gave, when it is there; raises its error, or InterruptedRunError."""
    outcome = _outcome(future)
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


def open_engine(compute: Compute) -> Engine:
    """The engine that `compute.scheduler` asks for.

    Raises
    ------
    ConfigError
        The cluster cannot be reached or its class cannot be imported.
    """
    spec = compute.scheduler
    if spec.kind == "inline":
        return InlineEngine()
    workers = worker_count(compute)
    try:
        return DaskEngine(spec, workers)
    except (OSError, TimeoutError) as error:
        where = spec.address or spec.path or spec.cls
        raise ConfigError(f"compute.scheduler: no cluster answers at {where}: {error}. Start one, or set it to local.") from error


def _start_cluster(spec: SchedulerSpec, workers: int) -> Any:
    if spec.kind == "local":
        return _start_local_cluster(workers)
    module, _, name = (spec.cls or "").rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"compute.scheduler.class: {spec.cls} cannot be imported: {error}.") from error
    cluster = factory(**spec.args)
    cluster.scale(workers)
    return cluster


def _address_in_file(path: str) -> str:
    """The address of a scheduler in the file that it wrote. Raises ConfigError: distributed would wait for ever for a file that is not there."""
    data = read_small_file(path, "compute.scheduler", "Start the scheduler first: dask scheduler --scheduler-file FILE.")
    try:
        address = json.loads(data)["address"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"compute.scheduler: {path} is not a scheduler's file: it has no address. Start the scheduler again.") from error
    if not isinstance(address, str) or not re.fullmatch(r"\w+://\S+", address):
        raise ConfigError(
            f"compute.scheduler: {path} is not a scheduler's file: its address is {str(address)[:80]!r}. Start the scheduler again."
        )
    return address


def _start_local_cluster(workers: int) -> Any:
    """Worker processes of this machine that take work from this process alone.

    Whoever reaches a scheduler or a worker of dask may have it run any code, and each user of the machine reaches its ports: all connections
    are TLS with a key and a certificate made for this run, which both sides must show, and which never lie on a disk for longer than it takes to load them.
    That costs 0.1 s at the start of a run and 0.5 ms or less a task. No pages about tasks are served.
    """
    import dask
    import distributed

    unserved: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(unserved):
        # The nanny's own memory limit is off: the plan refuses what does not fit, and a kill would only repeat the shard.
        # Left alone, the scheduler would open port 8787 of every address, for one run a machine.
        return distributed.LocalCluster(
            n_workers=workers, threads_per_worker=LANES + 1, processes=True, memory_limit=None, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}, security=distributed.Security.temporary(), protocol="tls://",
        )  # fmt: skip
