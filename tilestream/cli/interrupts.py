"""What signals do to a command."""

from __future__ import annotations

import os
import threading
from typing import Any, NoReturn

from tilestream.errors import InterruptedRunError

GRACE = 8.0
"""Seconds that a run has to end after an interrupt; a decoder or a batch may take longer than anyone waits."""


class Interrupts:
    """What SIGINT and SIGTERM do: the first ends the run in order, within `GRACE` seconds; the second ends the process at once."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _signal: int, _frame: Any) -> NoReturn:
        self.count += 1
        if self.count > 1:
            self._leave("interrupted twice: leaving at once")
        timer = threading.Timer(GRACE, self._leave, [f"work did not end within {GRACE:g} s: leaving now"])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def _leave(self, why: str) -> NoReturn:
        """End without waiting for anything: what is committed is in the store already."""
        os.write(2, f"tilestream: {why}; what is finished is kept, and the same command resumes.\n".encode())
        os._exit(InterruptedRunError.exit_code)
