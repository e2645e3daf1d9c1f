"""What runs tasks: one interface, with bounded work in flight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tilestream.errors import TilestreamError, UnfitWorkerError, storage_error
from tilestream.stages.encoding.in_work import Told, heard_by
from tilestream.stages.hardware import worker_address


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


def run_heard(listener: Callable[[Told], None], function: Callable[..., Any], *arguments: Any) -> Outcome:
    """`run_task`, with somebody who hears how far it is."""
    with heard_by(listener):
        return run_task(function, *arguments)


class Engine(ABC):
    """Runs `function(*arguments)`, all of them picklable."""

    capacity: int
    """Tasks in flight that keep every worker busy, which are as many as there are now; more only cost memory."""
    workers: int
    """Workers that are ready now."""
    in_process: bool
    """Whether tasks run in this process."""
    told: deque[Told]
    """What tasks in work told of how far they are; whoever waits takes it."""

    @abstractmethod
    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a task; `key` comes back with its outcome."""

    @abstractmethod
    def wait_next(self, timeout: float | None = None) -> tuple[Any, Outcome] | None:
        """Key and outcome of the next task to end, in order of completion; None where none ends within `timeout` seconds, or workers came or went, or `wake` was called."""

    @abstractmethod
    def wake(self) -> None:
        """From any thread: end a wait that goes on, or else the next one."""

    @abstractmethod
    def call(self, function: Callable[[Any], Any], task: Any) -> Any:
        """Run one task on one worker and return its value, raising its error."""

    @abstractmethod
    def call_all(self, function: Callable[[Any], Any], task: Any) -> list[Any]:
        """Run one task on every worker at once and return the values, raising the first error; workers that come later do it before any other."""

    @abstractmethod
    def settle(self) -> None:
        """All is imported and built, and the work begins: where that is done in this process, set its interpreter for it until `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was started here; tasks still running are abandoned."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
