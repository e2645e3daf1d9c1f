"""What a process keeps of files that it has looked through, as long as they are the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from tilestream.sources.storage.contract import ByteSource

T = TypeVar("T")


class Kept(Generic[T]):
    """What was made of a file, made anew once the file is another; those made last are kept. Safe to share between threads.

    Parameters
    ----------
    most : int
        Files of which something is kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[str | int, ...], T] = {}
        self._lock = threading.Lock()

    def get(self, file: ByteSource, make: Callable[[], T]) -> T:
        """What `make` makes of a file."""
        key: tuple[str | int, ...] = file.name, file.identity
        if not file.identity:
            look = Path(file.name).stat()
            key = str(Path(file.name).absolute()), look.st_ino, look.st_size, look.st_mtime_ns
        with self._lock:
            if key in self._known:
                return self._known[key]
        made = make()
        with self._lock:
            self._known[key] = made
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        return made
