"""The contract of a byte source: what every format reads from, be it a local file or an object of a store."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO, Self


class ByteSource(ABC):
    """The bytes of one file or object, pinned: all reads give bytes of the version that was opened, or fail.

    Safe to share between threads; opened anew in each process, never pickled. A format reads its header through `open_file`, says with `ahead` which
    ranges it will read and in which order, and reads each with `read`. Local files do nothing ahead, so a format is written once for both.

    Failures are of three kinds, and never anything else: `ReadError` where the bytes are there and cannot be had (a range beyond the end),
    `OutageError` where storage does not answer, after all retries, and `InputError` where the object is no longer the one that was opened.
    """

    name: str
    """Address as messages show it."""
    size: int
    """Bytes."""
    identity: str
    """What changes when the bytes do: for an object its size and ETag; "" for a local file, which is told by samples of its bytes."""

    @abstractmethod
    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on. Raises ReadError, OutageError, InputError."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held; may be called twice. Reading afterwards is an error."""

    def ahead(self, starts: Sequence[int], counts: Sequence[int], again: Sequence[bool] = ()) -> AbstractContextManager[None]:
        """While the block runs, ranges are fetched ahead of those who `read` them, in the order given; neighbours in one request.

        Each range is meant to be read once, by any thread, nearly in this order; reading others, or one of them again, works as well.
        Ranges that the next list will ask for `again` are kept behind its end, as far as there is room. What is held is bounded by `ahead_bytes`.
        """
        del starts, counts, again
        return nullcontext()

    def holes(self, most: int) -> list[tuple[int, int]]:
        """First byte, and that behind the last, of the first parts, `most` at most, that storage knows to hold nothing and gives zeros for."""
        del most
        return []

    @property
    def ahead_bytes(self) -> int:
        """Most bytes that one `ahead` holds."""
        return 0

    def open_file(self) -> BinaryIO:
        """The bytes as a file that libraries read and seek in, small reads through a cache of blocks; of one thread.

        An outage under a library that swallows errors is raised again when the file is closed: use it in a `with` block.
        """
        return io.BufferedReader(_RawBytes(self), 1 << 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RawBytes(io.RawIOBase):
    """A byte source as a file without a buffer."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._place, self.name = source, 0, source.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._source.size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._source.size - self._place))
        if count:
            buffer[:count] = self._source.read(self._place, count)
        self._place += count
        return count
