"""Signals that are for the run, and not for what it starts."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

FROM_TERMINALS = (signal.SIGINT, signal.SIGHUP)
"""What a terminal tells each process on it: Ctrl-C, and that it is gone."""

STOPPING = (*FROM_TERMINALS, signal.SIGTERM)
"""What ends a run in order."""


@contextmanager
def kept_from_children(numbers: Collection[signal.Signals] = STOPPING) -> Iterator[None]:
    """A process that this thread starts while the block runs never hears of these signals, from its first moment; its own children likewise.

    Terminals, batch systems and service managers tell all processes of a run that it is to end. It ends them itself, in order, and they end by
    themselves where it dies: a decoder that died of the signal would be a tile that cannot be read. What comes meanwhile is heard when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stopping() -> list[signal.Signals]:
    """Signals that end this process in order; one that was ignored when it started stays ignored: a hang-up under nohup, Ctrl-C in what a script's shell starts with `&`."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
