"""An object as a file that parsers read: by blocks that are kept, for directories lie close together and are read in small pieces."""

from __future__ import annotations

import io
from collections.abc import Callable

from tilestream.errors import TilestreamError

BLOCK = 32 * 1024
"""Bytes of a block."""

AROUND = 4
"""Blocks that are asked for at once, one of them before the place that is wanted: values lie on both sides of a directory."""

MOST_BLOCKS = 2048
"""Blocks that are kept, and forgotten together: 64 MiB of directories."""


class BlockFile(io.RawIOBase):
    """Bytes of an object, by `fetch(start, end)`, as a file of one thread. `head`, its first bytes, is not asked for again.

    Parsers take what they cannot read for damage: an error of fetching is raised once more when the file is closed.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], head: bytes) -> None:
        self._size, self._fetch, self._place = size, fetch, 0
        self._blocks: dict[int, bytes] = {}
        self._error: TilestreamError | None = None
        whole = len(head) if len(head) == size else len(head) // BLOCK * BLOCK
        self._store(0, head[:whole])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = self._bytes(self._place, min(self._place + len(view), self._size))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        super().close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _bytes(self, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        if len(self._blocks) > MOST_BLOCKS:
            self._blocks.clear()
        first, last = start // BLOCK, (end - 1) // BLOCK
        missing = [block for block in range(first, last + 1) if block not in self._blocks]
        if missing:
            low, high = missing[0], missing[-1]
            if high - low + 1 < AROUND:
                low = max(0, low - 1)
                high = max(high, low + AROUND - 1)
            low_byte, high_byte = low * BLOCK, min((high + 1) * BLOCK, self._size)
            try:
                self._store(low, self._fetch(low_byte, high_byte))
            except TilestreamError as error:
                self._error = error
                raise
        found = b"".join(self._blocks[block] for block in range(first, last + 1))
        return found[start - first * BLOCK : end - first * BLOCK]

    def _store(self, first: int, data: bytes) -> None:
        for number, at in enumerate(range(0, len(data), BLOCK), first):
            self._blocks.setdefault(number, data[at : at + BLOCK])
