"""Slides copied whole to a local folder before they are read: bounded, atomic, shared between processes, and removed when nobody needs them.

Below the folder lies `tilestream-stage`, and in it for each slide a folder by its version with `lock`, `size` and the copy. Whoever copies holds `lock`
exclusively, whoever reads holds it shared: the system lets go of both where a process dies. Nothing else is ever touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tilestream.buffers import gib
from tilestream.errors import ConfigError, InterruptedRunError

HOME = "tilestream-stage"
_ENTRY = re.compile(r"[0-9a-f]{32}")
PATIENCE = 900.0
"""Seconds that a slide waits for room while all that is staged is in use."""
LOOK_EVERY = 0.25

_held: set[int] = set()
"""Open locks of this process."""


@dataclass(frozen=True)
class Staged:
    """A slide's copy, which stays until `release`."""

    path: Path
    lock: int

    def release(self) -> None:
        """Let others remove it; may be called twice."""
        if self.lock in _held:
            _held.discard(self.lock)
            os.close(self.lock)


class Stage:
    """Copies of slides below a folder, of `limit` bytes together at most.

    Raises
    ------
    ConfigError
        The folder cannot be used.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.root, self.limit = Path(folder) / HOME, limit
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"source.stage: {folder} cannot be used: {error.strerror or error}. Name a folder on a local disk."
            ) from error

    def hold(self, identity: str, name: str, size: int, copy: Callable[[int], None]) -> Staged:
        """The copy of a slide, made by `copy` into an open file where there is none yet.

        Waits where another process copies it, or where there is no room until other slides are done.

        Raises
        ------
        ConfigError
            It is larger than the limit, or no room came.
        InterruptedRunError
            The disk cannot be written.
        """
        if size > self.limit:
            raise ConfigError(
                f"source.stage_limit: {name} has {gib(size)}, the limit is {gib(self.limit)}. Raise it, or leave source.stage out."
            )
        entry, began = self.root / identity, time.monotonic()
        while True:
            with self._accounts():
                if (found := _share(entry, name)) is not None:
                    return found
                lock = None if entry.exists() or not self._make_room(size) else _claim(entry, name, size)
            if lock is not None:
                return self._fill(entry, name, lock, copy)
            if time.monotonic() - began > PATIENCE:
                raise ConfigError(
                    f"source.stage_limit: {gib(self.limit)} in {self.root} are full of slides that are in use, and {name} waited {PATIENCE:g} s for "
                    f"{gib(size)}. A run needs room for at least four slides; raise the limit."
                )
            time.sleep(LOOK_EVERY)

    def clear(self) -> None:
        """Let go of all that this process uses, and remove every copy that no process does, what died processes left included."""
        for lock in list(_held):
            _held.discard(lock)
            os.close(lock)
        with self._accounts():
            for entry in self._entries():
                _remove_unused(entry)

    def _fill(self, entry: Path, name: str, lock: int, copy: Callable[[int], None]) -> Staged:
        part = entry / f"{name}.part"
        try:
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                copy(file)
            finally:
                os.close(file)
            with self._accounts():
                part.rename(entry / name)
                fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException as error:
            _remove(entry)
            os.close(lock)
            if isinstance(error, OSError):
                raise InterruptedRunError(
                    f"source.stage: {entry.parent} cannot be written: {error.strerror or error}. Make room, then run the same command again."
                ) from error
            raise
        _held.add(lock)
        return Staged(entry / name, lock)

    def _make_room(self, size: int) -> bool:
        """Remove what nobody uses, what was used longest ago first, until there is room; whether there is."""
        entries = sorted(self._entries(), key=_last_use)
        used = {entry: _size(entry) for entry in entries}
        for entry in entries:
            if sum(used.values()) + size <= self.limit:
                break
            if _remove_unused(entry):
                del used[entry]
        return sum(used.values()) + size <= self.limit

    def _entries(self) -> Iterator[Path]:
        yield from (path for path in self.root.iterdir() if _ENTRY.fullmatch(path.name) and (path / "size").is_file())

    @contextmanager
    def _accounts(self) -> Iterator[None]:
        """Alone among all processes that use the folder."""
        file = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


def _claim(entry: Path, name: str, size: int) -> int:
    """A new folder for a copy, and its lock, held alone."""
    entry.mkdir()
    lock = os.open(entry / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (entry / "size").write_text(f"{size} {name}")
    return lock


def _share(entry: Path, name: str) -> Staged | None:
    """A finished copy; None where there is none, or it is being made. What a process that died left unfinished is removed."""
    try:
        lock = os.open(entry / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        _remove(entry)
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if not (entry / name).is_file():
        os.close(lock)
        _remove(entry)
        return None
    os.utime(lock)
    _held.add(lock)
    return Staged(entry / name, lock)


def _remove_unused(entry: Path) -> bool:
    """Remove a copy unless a process uses it; whether it is gone."""
    try:
        lock = os.open(entry / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        _remove(entry)
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        _remove(entry)
        return True
    finally:
        os.close(lock)


def _remove(entry: Path) -> None:
    """Remove a copy with its own files; a folder that holds anything else stays, with that."""
    with suppress(OSError):
        name = (entry / "size").read_text().partition(" ")[2]
        for path in (entry / name, entry / f"{name}.part", entry / "size", entry / "lock"):
            if name and path.parent == entry:
                path.unlink(missing_ok=True)
        entry.rmdir()


def _last_use(entry: Path) -> float:
    try:
        return (entry / "lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(entry: Path) -> int:
    try:
        return int((entry / "size").read_text().partition(" ")[0])
    except (OSError, ValueError):
        return 0
