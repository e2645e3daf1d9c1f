"""Objects of a store as byte sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, cast

from tilestream.errors import OutageError, without_credentials
from tilestream.sources.storage.ahead import MOST_BYTES, RangesAhead
from tilestream.sources.storage.blocks import BlockFile
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.fetching import RangeFetcher, beyond, identity_of
from tilestream.sources.storage.web_answers import empty, is_page, no_image

HEAD_BYTES = 64 * 1024
"""Bytes that are asked for when an object is opened: the header and, of many files, the first directory."""


class RemoteBytes(ByteSource):
    """An object of a store, or a file of a web server; what is held of it is bounded as `RangesAhead` says.

    Raises
    ------
    NotThereError, InputError, OutageError
        There is no such object, access is refused or the server gives no ranges, it does not answer.
    """

    def __init__(self, address: str) -> None:
        self.name = without_credentials(address)
        self._fetcher = RangeFetcher(address)
        try:
            self.head = self._fetcher.fetch(0, HEAD_BYTES)
            """The first bytes."""
        except OutageError:
            if self._fetcher.is_empty():
                raise empty(self.name) from None
            raise
        if is_page(self.head):
            raise no_image(address)
        version = self._fetcher.version
        assert version is not None, "the first answer pins it"
        self.size = version.size
        mark = version.mark or hashlib.blake2b(self.head + self._tail(), digest_size=16).hexdigest()
        self.identity = identity_of(self.size, mark)
        self._ranges = RangesAhead(self._fetcher.stream)

    @property
    def ahead_bytes(self) -> int:
        return MOST_BYTES

    def close(self) -> None:
        """Forget what is held."""
        self._ranges.clear()

    def open_file(self) -> BinaryIO:
        return cast("BinaryIO", BlockFile(self.size, self._fetcher.fetch, self.head))

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start` on."""
        if start < 0 or count < 0 or start + count > self.size:
            raise beyond(start, count, self.size)
        if start + count <= len(self.head):
            return self.head[start : start + count]
        return self._ranges.read(start, count)

    def ahead(self, starts: Sequence[int], counts: Sequence[int], again: Sequence[bool] = ()) -> AbstractContextManager[None]:
        """Fetch ranges ahead, in the order given, while the block runs; those that the next list asks for `again` stay, as far as there is room."""
        new = [k for k, (start, count) in enumerate(zip(starts, counts, strict=True)) if start + count > len(self.head)]
        chosen = [again[k] for k in new] if len(again) else []
        return self._ranges.ahead([starts[k] for k in new], [counts[k] for k in new], chosen)

    def _tail(self) -> bytes:
        return self._fetcher.fetch(max(0, self.size - HEAD_BYTES), self.size)
