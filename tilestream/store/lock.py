"""One run on one output: a lock file that names its owner, and is taken over when the owner is gone."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tilestream.errors import OutputError
from tilestream.store.folder import Folder

FOLDER = ".tilestream"


@contextmanager
def hold_lock(output: Folder, name: str) -> Iterator[None]:
    """Own `output` while the block runs, as `run`, or as one of n jobs that share it, `run-i-of-n`.

    Raises
    ------
    OutputError
        Another process owns it, or does other slides of it than the jobs of this n do; the message names host, process and time.
    """
    owner = {
        "host": platform.node(), "pid": os.getpid(), "born": _birth(os.getpid()), "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    key = f"{FOLDER}/{name}.lock"
    with _one_at_a_time(output):
        for rival in output.names(FOLDER):
            if rival.endswith(".lock") and _sharing(rival) != _sharing(key):
                _refuse_living(output, rival)
        while not _take(output, key, json.dumps(owner).encode()):
            _refuse_living(output, key)
            output.delete(key)  # its owner is dead
    try:
        yield
    finally:
        output.delete(key)


def _take(output: Folder, key: str, owner: bytes) -> bool:
    """Write the lock where there is none; False where there is one."""
    try:
        return output.put_new(key, owner)
    except OSError:
        if output.local is not None:  # a full disk, perhaps: in place but not synced. In an object store it may be another's
            output.delete(key)
        raise


def _sharing(key: str) -> str:
    """Which jobs may hold locks beside this one: those of one n."""
    return key.removesuffix(".lock").rpartition("-of-")[2]


@contextmanager
def _one_at_a_time(output: Folder) -> Iterator[None]:
    """Looking at locks and taking one is one step on a local disk: of two that find a dead owner, one takes over.

    In an object store it is only the taking: of two that find no owner, one becomes it.
    """
    if output.local is None:
        yield
        return
    folder = output.local / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "locks").open("wb") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_living(output: Folder, key: str) -> None:
    raw = output.get(key)
    if not raw:
        return
    try:
        owner = json.loads(raw)
        host, pid, since = owner["host"], int(owner["pid"]), owner["since"]
    except (ValueError, KeyError, TypeError):
        return  # cut short while it was written: its owner is dead
    if host == platform.node() and not _alive(pid, owner.get("born", "")):
        return
    raise OutputError(
        f"{output.address} is in use by process {pid} on {host} since {since}. Wait for it or choose another output; "
        f"if that process is gone, delete {output.address}/{key}."
    )


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


def _birth(pid: int) -> str:
    """When a process was started, in the system's own words; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot} {ticks}"
