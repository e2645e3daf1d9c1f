"""Byte sources by address."""

from __future__ import annotations

from tilestream.config.urls.objects import is_url
from tilestream.errors import InputError
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
