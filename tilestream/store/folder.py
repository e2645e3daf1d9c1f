"""A folder of objects, local or in an object store: whole objects in, whole objects out, nothing half-written visible."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import io
import os
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tilestream.config.local_files import NoFileError, open_regular
from tilestream.errors import ConfigError, OutputError
from tilestream.store.object_store import RemoteStore, await_writers, open_remote, set_objects, writer_marked

SYNCS_AT_ONCE = 16

PATIENCE = 60.0
"""Seconds that one waits for others that write into a folder."""

PARTIAL = ".partial"
"""How names end that zarr gives to local objects while it writes them; a process that dies leaves them behind."""


class LocalObjects(LocalStore):
    """Zarr's store of local files, which waits for nothing: what is no file is an error where it is read."""

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of an object, or a part of them; None where there is none. Raises OSError."""
        try:
            data = await asyncio.to_thread(_read_part, self.root / key, byte_range)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several."""
        return list(await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges)))


def _read_part(path: Path, part: ByteRequest | None) -> bytes:
    with open_regular(path) as file:
        if isinstance(part, RangeByteRequest):
            file.seek(part.start)
            return file.read(part.end - part.start)
        if isinstance(part, OffsetByteRequest):
            file.seek(part.offset)
        elif isinstance(part, SuffixByteRequest):
            file.seek(max(0, file.seek(0, io.SEEK_END) - part.suffix))
        return file.read()


class Folder:
    """A local directory or an object-store prefix, addressed by `/`-separated keys.

    Local objects are written beside their place, synced and renamed; object stores put whole objects by nature.
    One that is `read_only` refuses to write, and makes no folder.
    """

    def __init__(self, address: str, *, read_only: bool = False) -> None:
        self.address, self.read_only = address, read_only
        self.local = None if "://" in address else Path(address)
        self.store: Store = (
            LocalObjects(self.local, read_only=read_only) if self.local is not None else _remote_store(address, read_only=read_only)
        )

    @classmethod
    def in_memory(cls, address: str) -> Folder:
        """A folder that lies nowhere, in place of the one at `address`."""
        folder = cls.__new__(cls)
        folder.address, folder.local, folder.store = address, None, MemoryStore()
        return folder

    def reach(self) -> None:
        """Ask an object store for anything at all.

        Raises
        ------
        ConfigError
            It does not answer, or refuses.
        """
        if self.local is None:
            try:
                self.names(".tilestream")
            except OSError as error:
                raise ConfigError(
                    f"output: {self.address} cannot be reached: {error.strerror}. Check bucket, credentials and endpoint (AWS_ENDPOINT_URL and others)."
                ) from error

    def __truediv__(self, key: str) -> Folder:
        """The folder below this one."""
        return Folder(f"{self.address.rstrip('/')}/{key}", read_only=self.read_only)

    def get(self, key: str) -> bytes | None:
        """The bytes of an object, or None where there is none, or no file; looking makes no folder."""
        if self.local is not None:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, NoFileError), open_regular(self.local / key) as file:
                return file.read()
            return None
        buffer = sync(self.store.get(key, default_buffer_prototype()))
        return None if buffer is None else bytes(buffer.to_bytes())

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole; it survives a power cut once this returns."""
        self.set_all({key: data})
        self.flush(key)

    def set_all(self, objects: Mapping[str, bytes | Buffer]) -> None:
        """Write objects whole, many at a time; local ones are durable once they are flushed. Where one fails, none is being written any more."""
        if self.local is None:
            sync(set_objects(self.store, objects))
            return
        for key, data in objects.items():  # zarr would hand each to two threads
            with _beside(self._place(key)) as path:
                path.write_bytes(data if isinstance(data, bytes) else data.as_numpy_array().data)

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A path on a local disk for an object of any size: it is the object, whole and durable, once the block ends well."""
        if self.local is None:
            with tempfile.TemporaryDirectory(prefix="tilestream-") as place:
                path = Path(place) / "object"
                yield path
                assert isinstance(self.store, RemoteStore), "what lies in memory is small"
                sync(self.store.set_file(key, path))
            return
        with _beside(self._place(key)) as path:
            yield path
            _sync(path)
        _sync((self.local / key).parent)

    def sum(self, key: str) -> tuple[int, str] | None:
        """Size of an object and BLAKE2b of 16 bytes over it, in hex; None where there is none. Local ones may be of any size."""
        if self.local is None:
            data = self.get(key)
            return None if data is None else (len(data), hashlib.blake2b(data, digest_size=16).hexdigest())
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, NoFileError), open_regular(self.local / key) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            return file.tell(), digest.hexdigest()
        return None

    def file(self, key: str) -> Any:
        """An object of any size to be read in parts: the path of a local one, else a file."""
        if self.local is not None:
            return self.local / key
        assert isinstance(self.store, RemoteStore), "what lies in memory is small"
        return self.store.open_file(key)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object where there is none; False where there is one. On a local disk the caller sees to it that nobody comes between."""
        if isinstance(self.store, RemoteStore):
            return bool(sync(self.store.set_new(key, data)))
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    def _place(self, key: str) -> Path:
        """Where a local object is to be written."""
        assert self.local is not None, "files are local"
        if self.read_only:
            raise ValueError(f"{self.address} was opened read-only")
        return self.local / key

    def flush(self, key: str) -> None:
        """Make a local object and its name durable; object stores are durable when they answer."""
        if self.local is not None:
            _sync(self.local / key)
            _sync((self.local / key).parent)

    def flush_all(self, keys: list[str]) -> None:
        """Make these objects durable, and the names of all that lies in this folder."""
        if self.local is None:
            return
        folders = [Path(entry.path) for entry in _below(self.local) if entry.is_dir()]
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:  # file systems commit what is asked for together at once
            deque(pool.map(_sync, [*(self.local / key for key in keys), *folders, self.local, self.local.parent]), maxlen=0)

    def exists(self, key: str) -> bool:
        """Whether there is an object of this name."""
        if self.local is not None:
            return (self.local / key).is_file()
        return bool(sync(self.store.exists(key)))

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        if self.local is None or (self.local / key).is_dir():
            sync(self.store.delete(key))
        else:
            self._place(key).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> None:
        """Remove every object below `prefix`."""
        assert prefix, "what else lies in a folder is not known"
        sync(self.store.delete_dir(prefix))

    def children(self) -> list[str]:
        """Names of the files, folders and prefixes that lie in this folder, sorted; none where there is no such folder."""
        if self.local is not None:
            return sorted(path.name for path in self.local.iterdir()) if self.local.is_dir() else []
        return sync(_sorted(self.store.list_dir("")))

    def stat(self, key: str) -> tuple[bytes, Any] | None:
        """An object of an object store and its version, for `put_over`; None where there is none."""
        assert isinstance(self.store, RemoteStore), "versions are the object stores'"
        return sync(self.store.get_version(key))

    def put_over(self, key: str, data: bytes, version: Any) -> bool:
        """Write an object of an object store where it is of that version still; False where somebody wrote it since."""
        assert isinstance(self.store, RemoteStore), "versions are the object stores'"
        return bool(sync(self.store.set_over(key, data, version)))

    def names(self, prefix: str = "") -> list[str]:
        """Names of the objects below `prefix`, sorted; what a process that died was writing is none."""
        if self.local is not None:
            return sorted(name for name, _ in self._files(prefix) if not name.endswith(PARTIAL))
        return sync(_sorted(self.store.list_prefix(prefix)))

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every object, by name."""
        if isinstance(self.store, RemoteStore):
            return sync(self.store.sizes())
        return {name: entry.stat().st_size for name, entry in self._files("")}

    def sweep(self) -> None:
        """Remove what processes that died were writing; for a folder that nobody else writes to."""
        for name, entry in self._files("") if self.local is not None else ():
            if name.endswith(PARTIAL):
                Path(entry.path).unlink(missing_ok=True)

    def _files(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Local objects with their names."""
        assert self.local is not None, "files are local"
        home = len(os.path.join(self.local, ""))  # noqa: PTH118  # with the separator
        return ((entry.path[home:], entry) for entry in _below(self.local / prefix) if _is_file(entry))

    @contextmanager
    def locked(self, prefix: str, *, shared: bool = False) -> Iterator[None]:
        """Alone among those that lock the folder `prefix`, or together with others that share; nothing in an object store or on a disk without locks."""
        if self.local is None:
            yield
            return
        place = self.local / prefix
        if not shared:
            place.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            yield
            return
        try:
            _lock(descriptor, place, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def marked(self, prefix: str) -> Iterator[None]:
        """Known below `prefix` as one who writes, in an object store; a disk has `locked`."""
        with writer_marked(self.store, prefix) if isinstance(self.store, RemoteStore) else nullcontext():
            yield

    def await_writers(self, prefix: str) -> None:
        """Wait for those. Raises OutputError where one goes on for more than `PATIENCE` seconds."""
        if isinstance(self.store, RemoteStore) and not await_writers(self.store, prefix, PATIENCE):
            raise OutputError(f"{self.address}: a process has been writing for {PATIENCE:g} s. End it, or wait for it, then run again.")


def _below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a folder and in those below it; links are not followed, and what vanishes meanwhile is not there."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # links that go round
        return entry.is_file()
    return False


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A path beside the place of a local object, which is moved there once the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_suffix(f".{os.urandom(16).hex()}{PARTIAL}")  # as zarr calls it
    try:
        yield path
        path.replace(target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _lock(descriptor: int, place: Path, how: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"{place}: a process has been writing for {PATIENCE:g} s. End it, or wait for it, then run again."
                ) from error
            time.sleep(0.01)
        except OSError:
            return  # a file system without locks
        else:
            return


async def _sorted(names: AsyncIterator[str]) -> list[str]:
    return sorted({name async for name in names})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remote_store(address: str, *, read_only: bool) -> Store:
    try:
        return open_remote(address, read_only=read_only)
    except ModuleNotFoundError as error:
        raise ConfigError(f"output: {address} needs the extra `s3`: pip install 'tilestream[s3]'.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"output: {address} is no URL of an object store: {error}.") from error
