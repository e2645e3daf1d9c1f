"""Local files as byte sources: read by place, without a lock."""

from __future__ import annotations

import errno
import os
import weakref

from tilestream.buffers import read_at
from tilestream.errors import ReadError, outage
from tilestream.sources.storage.contract import ByteSource


class LocalBytes(ByteSource):
    """A local file. Reading takes no lock and moves no file position."""

    identity = ""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._file).st_size
        self._close = weakref.finalize(self, os.close, self._file)

    def close(self) -> None:
        self._close()

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on, of the file as it was opened."""
        try:
            data = read_at(self._file, count, start)
        except OSError as error:
            raise outage(error, self.name) or ReadError(f"{count} bytes at {start}: {error.strerror or error}") from error
        if len(data) != count:
            raise ReadError(f"the file gave {len(data)} of {count} bytes at {start}")
        return data

    def holes(self, most: int) -> list[tuple[int, int]]:
        """As far as the file system knows them. Moves the file position, which no reading depends on."""
        found: list[tuple[int, int]] = []
        place = 0
        while hasattr(os, "SEEK_HOLE") and place < self.size and len(found) < most:
            try:
                start = os.lseek(self._file, place, os.SEEK_HOLE)
                if start >= self.size:
                    break
                place = os.lseek(self._file, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a file system that does not say
                    break
                place = self.size
            found.append((start, place))
        return found
