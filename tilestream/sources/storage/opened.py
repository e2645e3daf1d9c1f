"""Byte sources by address."""

from __future__ import annotations

from tilestream.config.urls.objects import beside_url, is_url
from tilestream.errors import InputError, NotThereError
from tilestream.sources.files import checked_file
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.local import LocalBytes


def open_bytes(address: str) -> ByteSource:
    """The bytes of a local file or of an object by URL. Raises InputError, of which NotThereError is one, or OutageError."""
    if not is_url(address):
        checked_file(address)
        return LocalBytes(address)
    try:
        from tilestream.sources.storage.remote import RemoteBytes

        return RemoteBytes(address)
    except ModuleNotFoundError as error:
        raise InputError(f"{address}: reading a URL needs the extra `s3`: pip install 'tilestream[s3]' ({error})") from error


def read_small_object(address: str, limit: int) -> bytes | None:
    """All bytes of an object; None where there is none, it is refused, or is larger than `limit`. Raises OutageError."""
    try:
        stored = open_bytes(address)
    except InputError:
        return None
    try:
        return stored.read(0, stored.size) if stored.size <= limit else None
    finally:
        stored.close()


def open_beside(address: str, suffix: str, starts: tuple[bytes, ...]) -> ByteSource | None:
    """The bytes of what lies beside an object under its name and a suffix, and begins with one of `starts`; None where there is none. Raises OutageError.

    Stores refuse what is not there to those who may not list, and pages that say so may come in its place.
    """
    try:
        stored = open_bytes(beside_url(address, suffix))
    except (NotThereError, InputError):
        return None
    if stored.read(0, min(4, stored.size)).startswith(starts):
        return stored
    stored.close()
    return None
