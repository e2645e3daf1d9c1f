"""What signals do to a command."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from tilestream.cli.help import fitted
from tilestream.errors import InterruptedRunError

GRACE = 8.0
"""Seconds that a run has to end after an interrupt; a decoder or a batch may take longer than anyone waits."""


class Interrupts:
    """What SIGINT and SIGTERM do: the first ends the run in order, within `GRACE` seconds; the second ends the process at once."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: Callable[[], str] | None = None
        """What is kept by now, in words; of a run."""

    def __call__(self, _signal: int, _frame: Any) -> NoReturn:
        self.note()
        raise KeyboardInterrupt

    def note(self) -> None:
        """Say that the run ends, and count the seconds that it has for that; who calls it raises KeyboardInterrupt as soon as may be."""
        self.count += 1
        if self.count > 1:
            self._leave("interrupted twice: leaving at once")
        if self.kept is not None:
            said = f"tilestream: interrupted: {self.kept()}; ending what is in hand, at the latest in {GRACE:g} s (Ctrl-C again: at once)"
            os.write(2, f"\n{fitted(said)}\n".encode() if sys.stderr.isatty() else f"{said}\n".encode())
        timer = threading.Timer(GRACE, self._leave, [f"work did not end within {GRACE:g} s: leaving now"])
        timer.daemon = True
        timer.start()

    def leave_unbegun(self) -> NoReturn:
        """End a command that was interrupted before it did anything, or that has nothing to keep."""
        if self.kept is None:
            print("tilestream: interrupted.", file=sys.stderr)
        sys.exit(InterruptedRunError.exit_code)

    def _leave(self, why: str) -> NoReturn:
        """End without waiting for anything: what is committed is in the store already."""
        os.write(2, f"{fitted(f'tilestream: {why}; what is finished is kept, and the same command resumes.')}\n".encode())
        os._exit(InterruptedRunError.exit_code)


def say_when_interrupted(kept: Callable[[], str]) -> None:
    """Have an interrupt say at once what is kept."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Interrupts):
        handler.kept = kept


def raise_again(lost: Any) -> None:
    """As `sys.unraisablehook`: an interrupt that came where Python cannot raise it, as in what it calls when an object dies, comes once more."""
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, Interrupts) or not handler.count or not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.05, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
