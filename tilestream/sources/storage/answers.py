"""Answers that are read while they still come."""

from __future__ import annotations

import threading
from collections.abc import Iterator


class Answer:
    """The bytes of one request, given out from the front as they come. Safe to share between threads.

    Memory bound
    ------------
    The bytes of the request.
    """

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._ended = False
        self._error: BaseException | None = None
        self._news = threading.Condition()

    def receive(self, parts: Iterator[bytes]) -> None:
        """Take what comes, to the end or to an error, which is for those who `take`."""
        error: BaseException | None = None
        try:
            for part in parts:
                with self._news:
                    if not self._data:
                        self._data = part  # often all of it
                    elif isinstance(self._data, bytes):
                        self._data = bytearray(self._data)
                        self._data += part
                    else:
                        self._data += part
                    self._news.notify_all()
        except BaseException as raised:  # noqa: BLE001  # carried to the threads that read
            error = raised
        with self._news:
            self._ended, self._error = True, error
            self._news.notify_all()

    def take(self, at: int, count: int) -> bytes:
        """`count` bytes from `at` on, once they are there; fewer where the answer ends before. Raises what receiving raised before they came."""
        with self._news:
            self._news.wait_for(lambda: self._ended or len(self._data) >= at + count)
            if self._error is not None and len(self._data) < at + count:
                raise self._error
            if at == 0 and len(self._data) <= count and isinstance(self._data, bytes):
                return self._data
            return bytes(memoryview(self._data)[at : at + count])

    def has(self, at: int, count: int) -> bool:
        """Whether `take` gives these bytes at once."""
        with self._news:
            return len(self._data) >= at + count or (self._ended and self._error is None)

    @property
    def length(self) -> int:
        """Bytes that came."""
        return len(self._data)

    def whole(self) -> bytes | bytearray:
        """What came of an answer that has ended; nothing where receiving failed. Not to be changed."""
        return b"" if self._error is not None else self._data

    def end(self, count: int) -> bytes:
        """The last bytes of an answer that has ended. Raises what receiving raised."""
        if self._error is not None:
            raise self._error
        return bytes(memoryview(self._data)[-count:])
