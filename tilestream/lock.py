"""One run on one output: a lock file that names its owner, and is taken over when the owner is gone."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tilestream.errors import OutputError
from tilestream.objects import Folder


@contextmanager
def hold_lock(output: Folder, name: str) -> Iterator[None]:
    """Own `output` while the block runs.

    Raises
    ------
    OutputError
        Another process owns it; the message names host, process and time.
    """
    owner = {"host": platform.node(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    key = f".tilestream/{name}.lock"
    _acquire(output, key, json.dumps(owner).encode())
    try:
        yield
    finally:
        output.delete(key)


def _acquire(output: Folder, key: str, mine: bytes) -> None:
    if output.local is None:
        _refuse_living(output, output.get(key), key)
        output.put(key, mine)
        return
    path = output.local / key
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _refuse_living(output, output.get(key), key)
            path.unlink(missing_ok=True)
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(mine)
            return


def _refuse_living(output: Folder, raw: bytes | None, key: str) -> None:
    if not raw:
        return
    try:
        owner = json.loads(raw)
        host, pid, since = owner["host"], int(owner["pid"]), owner["since"]
    except (ValueError, KeyError, TypeError):
        return  # cut short while it was written: its owner is dead
    if host == platform.node() and not _alive(pid):
        return
    raise OutputError(
        f"{output.address} is in use by process {pid} on {host} since {since}. Wait for it or choose another output; "
        f"if that process is gone, delete {output.address}/{key}."
    )


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
