"""Signals that come while a library must not be left in the middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilestream.tiles.decoding.signals import stopping


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A first signal of `stopping` that comes while the block runs ends what runs when the block does; a second one is heard at once.

    distributed waits in `sync` for what its loop does: a KeyboardInterrupt there leaves a callback behind that fails in its turn, and worker processes
    that start while what they are to be told is taken away. A handler with a method `note` is told of each at once, and says whether it counts.
    """
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    heard: list[int] = []

    def hold(number: int, frame: Any) -> None:
        if note := getattr(before[number], "note", None):
            heard.extend([number] if note(number) else [])
            return
        heard.append(number)
        if len(heard) > 1:
            before[number](number, frame)

    found = {number: signal.getsignal(number) for number in stopping()}
    before = {int(number): handler for number, handler in found.items() if callable(handler) and not isinstance(handler, signal.Handlers)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard and hasattr(before[heard[0]], "note"):
        raise KeyboardInterrupt
    if heard:
        before[heard[0]](heard[0], None)
