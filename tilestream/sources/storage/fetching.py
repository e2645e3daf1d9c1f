"""One range of an object: asked for, tried again with growing pauses, and held to be of the version that was opened."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from tilestream.config.urls.objects import missing_credentials, open_object, refusal_words, server_words
from tilestream.errors import InputError, NotThereError, OutageError, ReadError, outage
from tilestream.sources.storage.web_answers import NoRangesError, empty, no_ranges, unfit_answer

PAUSES = (0.2, 0.6, 1.8, 4.0)
"""Seconds before the second request of a range and each one after it, about: a server that is asked less recovers sooner."""

IN_FLIGHT = 128
"""Requests of a process that are under way at once."""

REQUEST_TIME = "90s"
"""For one request with its answer: 4 MiB over 400 kbit/s."""

OPTIONS: dict[str, Any] = {"client_options": {"timeout": REQUEST_TIME, "connect_timeout": "10s"}, "retry_config": {"max_retries": 0}}


STREAM_PART = 64 * 1024
"""Bytes of an answer that are handed on at once, at least."""

COPY_PART = 8 * 1024**2
"""Bytes of a request where an object is copied whole."""

COPY_AT_ONCE = 8


@dataclass(frozen=True)
class Version:
    """What tells one version of an object from another."""

    size: int
    mark: str
    """Its ETag, else its version, else when it was written; "" where the server says none of them."""


@cache
def request_pool() -> ThreadPoolExecutor:
    """The threads that wait for answers."""
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fetch")


class RangeFetcher:
    """Ranges of one object. Safe to share between threads. The first answer pins the version."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.version: Version | None = None
        self._answered = self._asked_why = False
        from obstore.exceptions import BaseError

        try:
            self._store, self._key = open_object(address, **OPTIONS)
        except BaseError as error:
            words = f"{address}: cannot be opened: {server_words(error)}. {missing_credentials(address) or 'Check the URL and the environment.'}"
            raise InputError(words) from None

    def fetch(self, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`, fewer only where the object ends before.

        Raises
        ------
        NotThereError
            There is no such object, and there was none when it was opened.
        InputError
            Access is refused, the server gives no parts of a file, or the object is another one by now.
        OutageError
            The server does not answer, or not as it should, for all that it was asked again.
        """
        return b"".join(self.stream(start, end))

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes that `fetch` gives, part by part as they come; what came is not asked for again. Raises as `fetch`."""
        at = start
        for pause in (*PAUSES, None):
            try:
                for part in self._ask(at, end):
                    at += len(part)
                    yield part
            except OutageError:
                if pause is None:
                    raise
                time.sleep(pause * (0.5 + random.random()))  # noqa: S311  # so that many do not come back at once
            else:
                return

    def _ask(self, start: int, end: int) -> Iterator[bytes]:
        import obstore
        from obstore import exceptions

        options: Any = {"range": (start, end)}
        if self.version is not None and _is_strong(self.version.mark):
            options["if_match"] = self.version.mark
        try:
            answer = obstore.get(self._store, self._key, options=options)
            self._check(answer.meta)
            came = 0
            for part in answer.stream(min_chunk_size=STREAM_PART):
                came += len(part)
                yield bytes(part)
        except FileNotFoundError as error:
            if self.version is None:
                raise NotThereError(f"{self.address}: there is no such object. Check the URL.") from None
            raise self._lost("the object is gone") from error
        except exceptions.PreconditionError:
            self._refuse_unfit()
            raise self._changed() from None
        except exceptions.NotSupportedError:
            self._refuse_unfit()
            raise no_ranges(self.address) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            if self.version is not None:  # credentials that ran out: who gets new ones goes on
                raise self._lost(f"access is refused now ({server_words(error)})") from None
            raise InputError(f"{self.address}: access is refused ({server_words(error)}). {refusal_words(self.address)}") from None
        except (exceptions.BaseError, OSError) as error:
            self._refuse_unfit()
            raise self._lost(server_words(error)) from None
        expected = min(end, self.version.size if self.version else end) - start
        if came != expected:
            self._refuse_unfit()
            raise self._lost(f"{came} bytes came where {expected} were asked for")
        self._answered = True

    def _refuse_unfit(self) -> None:
        """Refuse a web server whose first answer can never be read, however often it is asked. Raises InputError."""
        if not self._answered and not self._asked_why:
            self._asked_why = True
            found = unfit_answer(self.address)
            if found is not None:
                raise found

    def _check(self, meta: Any) -> None:
        stamp = meta["last_modified"].timestamp()
        mark = meta["e_tag"] or meta["version"] or (str(stamp) if stamp > 0 else "")
        version = Version(int(meta["size"]), str(mark))
        if self.version is None:
            self.version = version
        elif version != self.version:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(
            f"{self.address} changed while it was being read: it is not the object that was opened. Run again with --restart once nothing writes to it."
        )

    def _lost(self, words: str) -> OutageError:
        found = outage(OSError(errno.EIO, words), self.address)
        assert found is not None, "EIO is an outage"
        return found

    def is_empty(self) -> bool:
        """Whether the object has no bytes, which servers refuse to give a part of."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            return int(obstore.head(self._store, self._key)["size"]) == 0
        except (BaseError, OSError):
            return False

    def copy(self, file: int, *, whole: bool) -> None:
        """Write the object into an open file, by ranges that come at once, or where the server gives none as a `whole`. Raises as `fetch`."""
        assert self.version is not None, "the object was looked at"
        if whole:
            self._stream(file)
            return
        pending: deque[tuple[int, Future[bytes]]] = deque()
        try:
            for start in range(0, self.version.size, COPY_PART):
                pending.append((start, request_pool().submit(self.fetch, start, min(start + COPY_PART, self.version.size))))
                if len(pending) == COPY_AT_ONCE:
                    _write(file, *pending.popleft())
            while pending:
                _write(file, *pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def _stream(self, file: int) -> None:
        import obstore
        from obstore.exceptions import BaseError

        try:
            answer = obstore.get(self._store, self._key)
            self._check(answer.meta)
            at = 0
            for part in answer.stream(min_chunk_size=COPY_PART):
                at += os.pwrite(file, part, at)
        except BaseError as error:
            raise self._lost(server_words(error)) from None
        if self.version is not None and at != self.version.size:
            raise self._lost(f"{at} bytes came of {self.version.size}")

    def look(self) -> bool:
        """Pin the version; whether the server gives ranges. Raises as `fetch`."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            self.fetch(0, 1)
        except NoRangesError:
            try:
                self._check(obstore.get(self._store, self._key).meta)  # not its head, which signed addresses and some servers refuse
            except (BaseError, OSError) as error:
                raise self._lost(server_words(error)) from None
            return False
        except OutageError:
            if self.is_empty():
                raise empty(self.address) from None
            raise
        return True


def identity_of(size: int, mark: str) -> str:
    """A digest that changes when the object does."""
    return hashlib.blake2b(f"{size} {mark}".encode(), digest_size=16).hexdigest()


def _write(file: int, start: int, data: Future[bytes]) -> None:
    os.pwrite(file, data.result(), start)


def _is_strong(mark: str) -> bool:
    """Whether a mark is an ETag that servers compare byte for byte (RFC 9110, section 8.8.3)."""
    return mark.startswith('"')


def beyond(start: int, count: int, size: int) -> ReadError:
    """The error of a range that is not in the object."""
    return ReadError(f"{count} bytes at {start} lie beyond the object's {size}")
