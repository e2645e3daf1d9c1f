"""What signals do to a command."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, Self

from tilestream.cli.help import fitted
from tilestream.errors import InterruptedRunError
from tilestream.tiles.decoding.signals import stopping

GRACE = 8.0
"""Seconds that a run has to end after an interrupt; a decoder or a batch may take longer than anyone waits."""

AT_ONCE = 0.2
"""Seconds within which a second signal is the first one told again: `timeout` tells a process and then its group, and what starts others passes on
what their terminal told them already. Nobody types Ctrl-C twice as fast."""


class Interrupts:
    """What SIGINT, SIGTERM and SIGHUP do, where they are not ignored: the first ends the run in order, within `GRACE` seconds; the second ends the process at once."""

    def __init__(self) -> None:
        self.count = 0
        self.lost = False
        """Whether an interrupt came where Python could not raise it, and is on its way once more."""
        self._first = 0.0
        self.kept: Callable[[], str] | None = None
        """What is kept by now, in words; of a run."""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self) for number in stopping()}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Have signals heard by what heard them before; once interrupted, a command goes on hearing them until its process ends."""
        if not self.count:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        elif kind is KeyboardInterrupt:  # as the command was ending, in words about an error or before it began
            self.leave_unbegun()

    def __call__(self, number: int, _frame: Any) -> None:
        if self.note(number):
            raise KeyboardInterrupt

    def note(self, number: int) -> bool:
        """Say that the run ends, and count the seconds that it has for that; where it is true, who calls it raises KeyboardInterrupt as soon as may be.

        A hang-up after any interrupt is not counted: a terminal that closes tells of itself by its shell and by the kernel, one after the other.
        """
        if self.lost:
            self.lost = False
            return True
        if self.count and (number == signal.SIGHUP or time.monotonic() - self._first < AT_ONCE):
            return False
        self.count += 1
        if self.count > 1:
            self._leave("interrupted twice: leaving at once")
        self._first = time.monotonic()
        logging.getLogger("distributed.nanny").setLevel(logging.ERROR)  # workers that hear of it as well are no news
        timer = threading.Timer(GRACE, self._leave, [f"work did not end within {GRACE:g} s: leaving now"])
        timer.daemon = True
        timer.start()
        if self.kept is not None:
            said = f"tilestream: interrupted: {self.kept()}; ending what is in hand, at the latest in {GRACE:g} s (Ctrl-C again: at once)"
            _say(f"\n{fitted(said)}\n" if os.isatty(2) else f"{said}\n")
        return True

    def leave_unbegun(self) -> NoReturn:
        """End a command that was interrupted before it did anything, or that has nothing to keep."""
        if self.kept is None:
            print("tilestream: interrupted.", file=sys.stderr)
        sys.exit(InterruptedRunError.exit_code)

    def _leave(self, why: str) -> NoReturn:
        """End without waiting for anything: what is committed is in the store already."""
        _say(f"{fitted(f'tilestream: {why}; what is finished is kept, and the same command resumes.')}\n")
        os._exit(InterruptedRunError.exit_code)


def _say(words: str) -> None:
    """Write to stderr in one step, whatever it is in the middle of. Where it is gone, or whoever reads it takes nothing, nobody is told: words are waited for by none."""
    ready = select.poll()
    ready.register(2, select.POLLOUT)
    with suppress(OSError):
        if any(event & select.POLLOUT for _, event in ready.poll(0)):
            os.write(2, words.encode())


def say_when_interrupted(kept: Callable[[], str]) -> None:
    """Have an interrupt say at once what is kept."""
    for _, interrupts in _hearing():
        interrupts.kept = kept


def _hearing() -> list[tuple[signal.Signals, Interrupts]]:
    """The signals that are heard, for some may be ignored, and by whom."""
    return [(number, handler) for number in stopping() if isinstance(handler := signal.getsignal(number), Interrupts)]


def raise_again(lost: Any) -> None:
    """As `sys.unraisablehook`: an interrupt that came where Python cannot raise it, as in what it calls when an object dies, comes once more."""
    number, interrupts = next(iter(_hearing()), (None, None))
    if number is None or interrupts is None or not interrupts.count or not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    interrupts.lost = True
    main = threading.main_thread().ident
    assert main is not None, "it runs"
    # A signal of its own, which wakes a thread that waits for a lock.
    timer = threading.Timer(0.05, signal.pthread_kill, [main, number])
    timer.daemon = True
    timer.start()
