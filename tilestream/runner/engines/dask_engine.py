"""Tasks on a cluster of dask whose workers come and go: work in flight follows those that are there."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tilestream.buffers import counted
from tilestream.config.compute import Compute
from tilestream.errors import InterruptedRunError, TilestreamError, UnfitWorkerError
from tilestream.runner.engines.clusters import Cluster, open_cluster
from tilestream.runner.engines.engine import Engine, Outcome, run_heard, run_task
from tilestream.runner.engines.interrupts import interrupts_held
from tilestream.runner.engines.patience import Patience
from tilestream.stages.encoding.in_work import Told
from tilestream.stages.worker_settings import TASKS
from tilestream.store.cohort import some

RETRIES = 2
"""Times that a task is tried again after an error that is not ours, such as a worker that died."""

DEATHS = 4
"""Workers that one task may kill: distributed's `allowed-failures` is 3."""

ALONE = 300.0
"""Seconds that a run waits for a worker where it started all of them on this machine, and none is left."""

CHECK_EVERY = 5.0
"""Seconds after which it is looked which workers are there, also where the scheduler told of no change."""

TOPIC = "tilestream"
"""Under which workers tell how far they are."""

LOST = "the scheduler was lost. What is finished is kept; the same command resumes once a cluster is there."


class TaskFailedError(InterruptedRunError):
    """A task ended with an error that is not ours: another worker may be able to do it."""


@dataclass(frozen=True)
class _Submitted:
    """A task that was started and has not ended."""

    key: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Any
    allowed: frozenset[str]
    """Addresses of the workers that may do it; empty for all."""
    again: int = 0
    """Times that it was started anew because those workers were gone, or could not do it."""


class DaskEngine(Engine):
    """Tasks on a `distributed` cluster, ours or one that was running already.

    Workers may come at any time: each first does the task of `call_all`, which checks it and gives it the encoder, and counts from then on.
    Tasks of workers that leave are done by others.
    """

    in_process = False

    def __init__(self, compute: Compute, say: Callable[[str], None]) -> None:
        self._say = say
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.told = deque()
        self._submitted: dict[str, _Submitted] = {}
        self._ready: set[str] = set()
        """Addresses of the workers that were checked and are there."""
        self._greeted: dict[str, tuple[str, Any]] = {}
        """Address and future of each check that goes on, by its key."""
        self._unfit: set[str] = set()
        """Addresses of workers that get no task."""
        self._welcome: tuple[Callable[[Any], Any], Any] | None = None
        """What a worker does first."""
        self._values: list[Any] | None = None
        """What the workers answered to that, while `call_all` waits for them."""
        self.record: list[tuple[int, int]] = []
        """Workers that were ready, and tasks in flight that they were good for, whenever that changed."""
        self._changed = False
        self._checked = 0.0
        self._run, self._count = os.urandom(4).hex(), 0
        self._threads = 1
        with interrupts_held():
            self._cluster: Cluster = open_cluster(compute)
        self._client = self._cluster.client
        limit = ALONE if compute.scheduler.kind == "local" else compute.wait
        self._patience = Patience(limit, self._cluster.expected, say)
        try:
            self._client.subscribe_topic("all", self._hear)
            self._client.subscribe_topic(TOPIC, self._hear_progress)
            self._check_cluster()
            while not self._ready:
                self.wait_next(1.0)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:  # type: ignore[override]
        """Workers that are ready now."""
        return len(self._ready)

    @property
    def capacity(self) -> int:  # type: ignore[override]
        """Tasks in flight: what the workers that are ready have in hand, and one more for each that waits there; where more come by themselves once there is work, as many as that takes."""
        return (self._cluster.most or len(self._ready)) * max(TASKS + 1, self._threads if self._cluster.most else 0)

    # -- tasks ------------------------------------------------------------------------------------------------------

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._start(_Submitted(key, function, arguments, None, frozenset()))

    def _start(self, task: _Submitted) -> None:
        """Start a task: on any worker, or, as long as there are some that were not checked or cannot do it, on one of the others."""
        self._count += 1
        name = f"{task.function.__name__}-{self._run}-{self._count}"
        allowed = frozenset(self._ready) if self._greeted or self._unfit else frozenset[str]()
        future = self._client.submit(
            run_heard, tell_scheduler, task.function, *task.arguments, key=name, retries=RETRIES, pure=False, workers=sorted(allowed) or None,
            allow_other_workers=False,
        )  # fmt: skip
        self._submitted[name] = replace(task, future=future, allowed=allowed)
        future.add_done_callback(self._done.put)

    def _start_again(self, name: str) -> None:
        """Start a task anew. Raises InterruptedRunError where that was done too often."""
        task = self._submitted.pop(name)
        if task.again >= DEATHS:
            raise InterruptedRunError(
                f"{task.function.__name__} was started {DEATHS + 1} times, each time on workers that left. The same command resumes."
            )
        self._start(replace(task, again=task.again + 1))

    def wake(self) -> None:
        self._done.put(None)

    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        try:
            future = self._done.get(timeout=timeout)
        except queue.Empty:
            self._check_cluster()
            return None
        if self._changed or time.monotonic() - self._checked > CHECK_EVERY:
            self._check_cluster()
        if future is None:
            return None
        if future.key in self._greeted:
            self._judge(future)
            return None
        if future.status in ("lost", "pending"):  # the worker that held the result died; another one does the task again
            self._check_cluster()
            threading.Thread(target=self._await_again, args=[future], daemon=True).start()
            return None
        if future.key not in self._submitted:  # it was started anew
            return None
        return self._end(future)

    def _end(self, future: Any) -> tuple[Any, Outcome] | None:
        """Key and outcome of a task that ended; None where it is started anew."""
        task = self._submitted[future.key]
        try:
            outcome = _outcome(future)
        except TaskFailedError as error:
            if not task.allowed and (self._greeted or self._unfit):  # a worker may have done it that nobody had checked
                self._start_again(future.key)
                return None
            outcome = Outcome(error=error)
        except InterruptedRunError as error:
            outcome = Outcome(error=error)
        if outcome.worker:
            assert outcome.error is not None
            self._refuse(outcome.worker, outcome.error)
            self._start_again(future.key)
            return None
        del self._submitted[future.key]
        return task.key, outcome

    def _await_again(self, future: Any) -> None:
        """Hand a future on once more when it is done again, or cannot be."""
        with suppress(CancelledError, OSError):
            future.exception()  # waits; whether there is one is seen where outcomes are
        self._done.put(future)

    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        self.submit(None, function, task)
        while (ended := self.wait_next(CHECK_EVERY)) is None:
            pass
        return _value(ended[1])

    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        self._welcome, self._values, self._ready = (function, task), [], set()
        self._check_cluster()
        while self._greeted or not self._ready:
            self.wait_next(CHECK_EVERY)
        values, self._values = self._values, None
        return values

    # -- workers ----------------------------------------------------------------------------------------------------

    def _hear(self, event: tuple[float, Any]) -> None:
        """The scheduler tells of something, in a thread of the client."""
        if isinstance(event[1], dict) and event[1].get("action") in ("add-worker", "remove-worker"):
            self._changed = True
            self.wake()

    def _hear_progress(self, event: tuple[float, Any]) -> None:
        """A task tells how far it is, perhaps of another run on the same cluster."""
        self.told.append(Told(**{key: value for key, value in event[1].items() if key != "worker"}))  # which distributed adds
        self.wake()

    def _check_cluster(self) -> None:
        """Follow the workers that came and went. Raises InterruptedRunError where the scheduler is lost or patience ends."""
        self._changed, self._checked = False, time.monotonic()
        if self._client.status != "running":
            raise InterruptedRunError(LOST)
        try:
            with interrupts_held():
                told = self._client.scheduler_info(n_workers=-1)["workers"]
        except OSError as error:
            raise InterruptedRunError(LOST) from error
        there = set(told)
        self._threads = max([self._threads, *(int(worker["nthreads"]) for worker in told.values())])
        if left := self._ready - there:
            kept = len(self._ready) - len(left)
            self._say(
                f"{some(sorted(left))} left; {counted(kept, 'worker')} of this run {'is' if kept == 1 else 'are'} there. What was in hand is done again."
            )
        self._ready &= there
        for key, (address, future) in list(self._greeted.items()):
            if address not in there:
                del self._greeted[key]
                future.cancel()
        for address in there - self._ready - self._unfit - {address for address, _ in self._greeted.values()}:
            self._greet(address)
        self._note()
        if not self._ready and not self._greeted:
            self._patience.wait(len(there))
            return
        self._patience.end()
        for name, task in list(self._submitted.items()):
            if task.allowed and not task.allowed & there:
                task.future.cancel()
                self._start_again(name)

    def _greet(self, address: str) -> None:
        """Let a worker do first what workers do first; where that is nothing yet, it is ready."""
        if self._welcome is None:
            self._ready.add(address)
            return
        self._count += 1
        key = f"welcome-{self._run}-{self._count}"
        future = self._client.submit(
            run_task, *self._welcome, key=key, pure=False, priority=1, workers=[address], allow_other_workers=False
        )  # fmt: skip
        self._greeted[key] = address, future
        future.add_done_callback(self._done.put)

    def _judge(self, future: Any) -> None:
        """A worker has done what workers do first, or failed to."""
        address, _ = self._greeted.pop(future.key)
        try:
            outcome = _outcome(future)
        except TaskFailedError as error:
            outcome = Outcome(error=UnfitWorkerError(f"worker {address} is refused: {error}"), worker=address)
        if outcome.error is None:
            self._ready.add(address)
            if self._values is not None:
                self._values.append(outcome.value)
            self._note()
        elif self._values is None or outcome.worker:
            self._refuse(address, outcome.error)
        else:
            raise outcome.error

    def _refuse(self, address: str, error: TilestreamError) -> None:
        """Give a worker no more tasks. Raises its error where it was the last one."""
        if address not in self._unfit:
            self._unfit.add(address)
            self._say(str(error))
        self._ready.discard(address)
        self._note()
        if not self._ready and not self._greeted:
            raise error

    def _note(self) -> None:
        """Keep how many workers there are, where that changed."""
        now = (self.workers, self.capacity)
        if now != (self.record[-1] if self.record else (0, 0)):
            self.record.append(now)
            self.wake()  # there may be room for more tasks

    def settle(self) -> None:
        """Workers do so themselves."""

    def close(self) -> None:
        if self._client.status == "running":
            for topic in ("all", TOPIC):  # the scheduler would tell a client that is gone
                self._client.unsubscribe_topic(topic)
        self._cluster.close()


def tell_scheduler(told: Told) -> None:
    """In a worker: how far a task is goes to whoever asked the scheduler for it."""
    from distributed import get_worker

    get_worker().log_event(TOPIC, vars(told))


def _value(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _outcome(future: Any) -> Outcome:
    """How a task ended, when it has. Raises InterruptedRunError where that cannot be known, TaskFailedError where it failed by itself."""
    try:
        with interrupts_held():
            error = future.exception()
            if error is None:
                outcome: Outcome = future.result()
        if error is None:
            return outcome
    except (CancelledError, OSError) as broken:  # what tasks raise is handed over; this is the connection
        raise InterruptedRunError(LOST) from broken
    if isinstance(error, CancelledError):
        raise InterruptedRunError(LOST) from error
    from distributed import KilledWorker

    way_out = "Where a decoder crashes, compute.isolate: true gives up the tile alone. The same command resumes."
    if isinstance(error, KilledWorker):
        raise InterruptedRunError(f"{future.key} killed {DEATHS} workers, one after another. {way_out}") from error
    raise TaskFailedError(f"{future.key}: {type(error).__name__}: {error}. {way_out}") from error
