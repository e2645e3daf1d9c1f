"""What the children of this process hold."""

from __future__ import annotations

import contextlib
import math
import os
import time


def children_memory() -> int:
    """Bytes of resident memory that this process's children hold now, without shared memory (`RssAnon` and `RssFile` of proc(5))."""
    total = 0
    for child in _children():
        with contextlib.suppress(OSError):  # it has ended
            lines = _read(f"{child}/status").splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))
    return total


def _children() -> list[str]:
    """Numbers of the processes that threads of this one have started."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                found += _read(f"self/task/{thread}/children").split()
    return found


def _read(name: str) -> str:
    """A short file of the kernel's, in one call: some hundreds of them are read beside a device that is fed."""
    descriptor = os.open(f"/proc/{name}", os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


class ChildrenWatch:
    """`children_memory`, looked at twice a second at most."""

    AGAIN = 0.5
    """Seconds."""

    def __init__(self) -> None:
        self._looked, self._bytes = -math.inf, 0

    def __call__(self) -> int:
        if (now := time.monotonic()) >= self._looked + self.AGAIN:
            self._looked, self._bytes = now, children_memory()
        return self._bytes


children_lately = ChildrenWatch()
