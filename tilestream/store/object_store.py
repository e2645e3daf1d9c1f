"""Object stores by URL. Their failures are OSErrors with the object's name, as a disk's are."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from tilestream.config.urls.objects import open_store, server_words


def open_remote(address: str, *, read_only: bool = False) -> Store:
    """The Zarr store below a URL (s3, gs, az, http, https, file), by obstore, with credentials and endpoint from the environment.

    Nothing is asked of the server yet.

    Raises
    ------
    ModuleNotFoundError
        Obstore is not installed.
    OSError, ValueError
        The URL names nothing that obstore opens.
    """
    import obstore  # noqa: F401  # whether it is installed is said first

    with failures_are_oserrors(address):
        return RemoteStore(open_store(address), read_only=read_only)


@contextmanager
def failures_are_oserrors(name: str) -> Iterator[None]:
    """Obstore's errors as OSErrors (EIO) about `name`, in the server's own words or else their first line: the rest is debug output by the page."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise OSError(errno.EIO, server_words(error), name) from error


class RemoteStore(ObjectStore[Any]):
    """Zarr's store over obstore, with its failures as OSErrors."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or part of it; None where there is no such object."""
        with failures_are_oserrors(key):
            return await super().get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with failures_are_oserrors(key):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object whole."""
        with failures_are_oserrors(key):
            await super().set(key, value)

    async def set_file(self, key: str, path: Path) -> None:
        """Write an object whole from a local file, in parts."""
        import obstore

        with failures_are_oserrors(key):
            await obstore.put_async(self.store, key, path)

    def open_file(self, key: str) -> ObjectFile:
        """An object as a file that is read in parts."""
        return ObjectFile(self.store, key)

    async def set_new(self, key: str, data: bytes) -> bool:
        """Write an object where there is none; False, and nothing is written, where there is one."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with failures_are_oserrors(key):
            try:
                await obstore.put_async(self.store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def set_over(self, key: str, data: bytes, version: Any) -> bool:
        """Write an object where it is of `version`, from `get_version`; False, and nothing is written, where it is not."""
        import obstore
        from obstore.exceptions import PreconditionError

        with failures_are_oserrors(key):
            try:
                await obstore.put_async(self.store, key, data, mode=version)
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    async def get_version(self, key: str) -> tuple[bytes, Any] | None:
        """An object and its version; None where there is no such object."""
        import obstore

        with failures_are_oserrors(key):
            try:
                found = await obstore.get_async(self.store, key)
            except FileNotFoundError:
                return None
            return bytes(await found.bytes_async()), {
                name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None
            }

    async def sizes(self) -> dict[str, int]:
        """Size in bytes of every object, by name."""
        import obstore

        with failures_are_oserrors(""):
            return {entry["path"]: entry["size"] async for entries in obstore.list(self.store) for entry in entries}

    async def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        with failures_are_oserrors(key):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        with failures_are_oserrors(prefix):
            await super().delete_dir(prefix)

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[Any, None]:
        with failures_are_oserrors(prefix or ""):
            async for entry in super()._list(prefix):
                yield entry

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names of the objects and prefixes right below a prefix."""
        with failures_are_oserrors(prefix):
            async for name in super().list_dir(prefix):
                yield name


class ObjectFile(io.RawIOBase):
    """An object of an object store as a file, read range by range."""

    def __init__(self, store: Any, key: str) -> None:
        import obstore

        with failures_are_oserrors(key):
            self._size = int(obstore.head(store, key)["size"])
        self._store, self._key, self._place = store, key, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        import obstore

        count = max(0, min(len(buffer), self._size - self._place))
        if count:
            with failures_are_oserrors(self._key):
                buffer[:count] = bytes(obstore.get_range(self._store, self._key, start=self._place, length=count))
        self._place += count
        return count


SETS_AT_ONCE = 16
"""Objects that one caller writes at the same time."""


async def set_objects(store: Store, objects: Mapping[str, bytes | Buffer]) -> None:
    """Write objects whole, many at a time. Where one fails, none is being written any more once its error is raised."""
    left = iter(objects.items())

    async def set_some() -> None:
        for key, data in left:
            try:
                await store.set(key, data if isinstance(data, Buffer) else default_buffer_prototype().buffer.from_bytes(data))
            except BaseException:
                deque(left, maxlen=0)
                raise

    ended = await asyncio.gather(*(set_some() for _ in range(SETS_AT_ONCE)), return_exceptions=True)
    for error in filter(None, ended):
        raise error


LEASE = 30.0
"""Seconds after which the mark of a writer that nobody renews counts for nothing."""


@contextmanager
def writer_marked(store: RemoteStore, prefix: str) -> Iterator[None]:
    """A mark below `prefix` while the block runs, which a thread renews.

    Who marks itself and then looks at the fence, and who puts up another fence and then waits for marks, cannot both go on: what an object store shows
    is what was written last.
    """
    key, beat = f"{prefix}/{secrets.token_hex(16)}.json", itertools.count()
    ended = threading.Event()

    def put() -> None:
        sync(store.set(key, default_buffer_prototype().buffer.from_bytes(json.dumps({**_own_process(), "beat": next(beat)}).encode())))

    def renew() -> None:
        while not ended.wait(LEASE / 3):
            with suppress(OSError):
                put()

    put()
    renewer = threading.Thread(target=renew, name="mark", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        with suppress(OSError):  # it runs out
            sync(store.delete(key))


def await_writers(store: RemoteStore, prefix: str, patience: float) -> bool:
    """Wait until nobody has a mark below `prefix`, or those who have them are dead; whether that was so within `patience` seconds of writers that live."""
    seen: dict[str, tuple[bytes, float]] = {}
    began = time.monotonic()
    while marks := sync(_marks(store, prefix)):
        now = time.monotonic()
        for key, data in marks.items():
            if seen.get(key, (b"", 0.0))[0] != data:
                seen[key] = data, now
            if now - seen[key][1] > LEASE or _is_dead(data):
                sync(store.delete(key))
        if now - began > patience + LEASE:
            return False
        time.sleep(0.1)
    return True


async def _marks(store: RemoteStore, prefix: str) -> dict[str, bytes]:
    found = {}
    async for name in store.list_dir(prefix):
        data = await store.get(f"{prefix}/{name}", default_buffer_prototype())
        if data is not None:
            found[f"{prefix}/{name}"] = data.to_bytes()
    return found


def _own_process() -> dict[str, Any]:
    """What tells whether a process lives, to those who see its numbers."""
    space = Path("/proc/self/ns/pid")
    return {"host": os.uname().nodename, "space": str(space.readlink()) if space.exists() else "", "pid": os.getpid()}


def _is_dead(data: bytes) -> bool:
    """Whether a mark is of a process of this machine that is gone."""
    try:
        told, own = json.loads(data), _own_process()
        if any(told[key] != own[key] for key in ("host", "space")):
            return False
        os.kill(int(told["pid"]), 0)
    except (ValueError, KeyError, TypeError, PermissionError):
        return False
    except ProcessLookupError:
        return True
    return False
