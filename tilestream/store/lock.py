"""Slides are taken one by one: a claim names its owner, is kept alive by a heartbeat, and is taken over once the owner is gone.

On a local disk the claim's file stays locked (flock) for as long as it is held: the system lets go of it with the process, in whichever
container that ran. Where the file system has no locks, and in object stores, the heartbeat alone counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tilestream.errors import ConfigError, OutputError
from tilestream.store.folder import Folder

CLAIMS = ".tilestream/claims"

BEAT = 15.0
"""Seconds between two signs of life of a claim."""

LEASE = 120.0
"""Seconds without one after which an owner that cannot be asked counts as dead."""


_LIVING: set[str] = set()
"""Ids of the claims that this process holds: of others that bear its number, the storage kept it from letting go."""


@dataclass
class _Held:
    """A claim of this process."""

    record: dict[str, Any]
    file: int = -1
    """Descriptor that is locked, on a local disk."""
    version: Any = None
    """Of the object, in an object store."""


class Claims:
    """The slides of an output that this process has taken. `take` says who has one that is not to be had."""

    def __init__(self, output: Folder) -> None:
        self._output = output
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._beating is not None:
            self._beating.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> str:
        """Take a slide: "" where it is ours now, else words on its owner."""
        with self._lock:
            if name in self._held:
                return ""
            record = {**_myself(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
            found = (self._take_file if self._output.local is not None else self._take_object)(f"{CLAIMS}/{name}.json", record)
            if isinstance(found, str):
                return found
            self._held[name] = found
            _LIVING.add(found.record["id"])
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)
                self._beating.start()
        return ""

    def abandoned(self, name: str) -> bool:
        """Whether somebody took a slide and never let go of it, dead or not."""
        return self._output.exists(f"{CLAIMS}/{name}.json")

    def release(self, name: str) -> None:
        """Let others have a slide."""
        with self._lock:
            held = self._held.pop(name, None)
            if held is None:
                return
            _LIVING.discard(held.record["id"])
            key = f"{CLAIMS}/{name}.json"
            if held.file >= 0:
                (self._path(key)).unlink(missing_ok=True)
                os.close(held.file)
            elif (found := self._output.stat(key)) and found[1] == held.version:
                self._output.delete(key)

    def _path(self, key: str) -> Path:
        assert self._output.local is not None, "files are local"
        return self._output.local / key

    def _take_file(self, key: str, record: dict[str, Any]) -> _Held | str:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # where no folder can be made at all, as below /proc
            raise ConfigError(f"output: {self._output.address} cannot be made: {error.strerror}. Name another folder.") from error
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                locks = _flock(file)
                owner = _parse(os.pread(file, 1 << 16, 0))
                if locks is False or (owner and not _is_dead(owner, locked=locks is True)):
                    return _words(owner)
                if _same_file(file, path):
                    _write(file, record)
                    held = _Held(record, file)
                    file = -1
                    return held
            finally:
                if file >= 0:
                    os.close(file)

    def _take_object(self, key: str, record: dict[str, Any]) -> _Held | str:
        data = json.dumps({**record, "beat": time.time()}).encode()
        found = self._output.stat(key)
        if found is None:
            self._output.put_new(key, data)
        else:
            owner = _parse(found[0])
            if owner and not _is_dead(owner, locked=False):
                return _words(owner)
            self._output.put_over(key, data, found[1])
        now = self._output.stat(key)  # what was answered may have been an answer to a second try
        if now is None or now[0] != data:
            return _words(_parse(now[0]) if now else {})
        return _Held(record, version=now[1])

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with self._lock:
                for name, held in self._held.items():
                    try:
                        self._sign(f"{CLAIMS}/{name}.json", held)
                    except OSError:
                        continue  # the next one comes in time

    def _sign(self, key: str, held: _Held) -> None:
        if held.file >= 0:
            _write(held.file, held.record)
        elif self._output.put_over(key, json.dumps({**held.record, "beat": time.time()}).encode(), held.version):
            found = self._output.stat(key)
            held.version = found[1] if found else None


@contextmanager
def hold_lock(output: Folder, slide: str) -> Iterator[None]:
    """Own one slide of an output while the block runs.

    Raises
    ------
    OutputError
        Another process has it; the message names host, process and time.
    """
    with Claims(output) as claims:
        if owner := claims.take(slide):
            raise OutputError(f"{output.address}/{slide}.zarr is in use by {owner}. Wait for it, or choose another output.")
        yield


def _write(file: int, record: dict[str, Any]) -> None:
    data = json.dumps({**record, "beat": time.time()}).encode()
    os.pwrite(file, data, 0)
    os.ftruncate(file, len(data))


def _flock(file: int) -> bool | None:
    """Lock a file: whether nobody else has; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _same_file(file: int, path: Path) -> bool:
    """Whether what is open still lies there: its owner removes it as it lets go."""
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _myself() -> dict[str, Any]:
    """Who claims: a process by machine (boot), PID namespace, number and birth."""
    return {
        "host": platform.node(),
        "boot": _boot(),
        "pids": _pids(),
        "pid": os.getpid(),
        "born": _birth(os.getpid()),
        "id": os.urandom(4).hex(),
    }


def _parse(raw: bytes) -> dict[str, Any]:
    """A claim as it was written; empty where it was cut short."""
    try:
        found = json.loads(raw)
        return {**found, "pid": int(found["pid"]), "beat": float(found.get("beat", 0))}
    except (ValueError, KeyError, TypeError):
        return {}


def _is_dead(owner: dict[str, Any], *, locked: bool) -> bool:
    """Whether the owner of a claim is gone.

    On its own machine that is known where we have the lock that it would hold, and within its own PID namespace, by its number. Elsewhere
    it is dead once its heart has stopped.
    """
    if locked and platform.node() == owner.get("host"):
        return True
    if owner.get("boot") and owner["boot"] == _boot():
        if locked:
            return True
        if owner.get("pids") == _pids() and owner["pid"] == os.getpid():
            return owner.get("id") not in _LIVING
        if owner.get("pids") == _pids():
            return not _alive(owner["pid"], owner.get("born", ""))
    return bool(time.time() - owner["beat"] > LEASE)


def _words(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner['pid']} on {owner.get('host')} since {owner.get('since')}"


def _alive(pid: int, born: str) -> bool:
    """Whether a process of this machine runs, and is the one that was born then: numbers are used again."""
    if born and (now := _birth(pid)) and now != born:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    """What names this machine since it was started; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pids() -> int:
    """The namespace in which numbers of processes mean anything; 0 where the system does not say."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _birth(pid: int) -> str:
    """When a process was started, in clock ticks; empty where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
