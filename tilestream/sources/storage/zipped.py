"""A Zarr store in a ZIP file of an object store: its directory is read once, and of its members no more than is asked for."""

from __future__ import annotations

import struct
import threading
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from zarr.storage import ZipStore

from tilestream.sources.storage.contract import ByteSource

LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a member: the lengths of its name and of its extra field stand at its end (APPNOTE 4.3.7)."""

ROOM = 64
"""Bytes by which a member's own extra field may be longer than the directory says, for one request to hold it all."""


class RemoteZip(ZipStore):
    """The members of a ZIP file, read-only. Members that are stored are read by ranges, compressed ones one after another."""

    def __init__(self, stored: ByteSource) -> None:
        super().__init__("remote.zip", mode="r", read_only=True)
        self._stored = stored
        self._starts: dict[str, int] = {}

    def _sync_open(self) -> None:
        self._lock = threading.RLock()
        self._zf = ZipFile(self._stored.open_file())
        self._is_open = True

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._is_open:
            super().close()
        self._stored.close()

    def fetch(self, key: str, offset: int, length: int | None) -> bytes | None:
        """`length` bytes of a member, all of it where that is None; a negative offset counts from its end. None where there is no such member."""
        if not self._is_open:
            self._sync_open()
        member = self._zf.NameToInfo.get(key)
        if member is None:
            return None
        if member.compress_type != ZIP_STORED:
            with self._lock:
                data = self._zf.read(member)
            return data[offset:][:length]
        if length is None:
            return self._whole(member)
        first = offset if offset >= 0 else member.file_size + offset
        if first < 0 or first + length > member.file_size:
            raise ValueError(f"{key} has {member.file_size} bytes, {length} at {first} are wanted")
        return self._stored.read(self._start(member) + first, length)

    def _whole(self, member: ZipInfo) -> bytes:
        """A stored member, with its own header in one request."""
        begin = member.header_offset
        most = LOCAL_HEADER.size + len(member.orig_filename.encode()) + len(member.extra) + ROOM + member.file_size
        data = self._stored.read(begin, min(most, self._stored.size - begin))
        start = _header_bytes(data)
        if start + member.file_size > len(data):
            return self._stored.read(begin + start, member.file_size)
        return data[start : start + member.file_size]

    def _start(self, member: ZipInfo) -> int:
        """Where the bytes of a stored member begin."""
        if member.filename not in self._starts:
            self._starts[member.filename] = member.header_offset + _header_bytes(self._stored.read(member.header_offset, LOCAL_HEADER.size))
        return self._starts[member.filename]


def _header_bytes(data: bytes) -> int:
    """The length of a member's header, from its first bytes. Raises ValueError where it is none."""
    if data[:4] != b"PK\3\4" or len(data) < LOCAL_HEADER.size:
        raise ValueError("the ZIP file's directory names a member that is not there")
    name, extra = LOCAL_HEADER.unpack_from(data)
    return LOCAL_HEADER.size + int(name) + int(extra)
