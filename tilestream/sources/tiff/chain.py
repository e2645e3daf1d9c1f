"""The chain of a TIFF file's directories, walked before anything else is read: TIFF 6.0 section 2, BigTIFF's 64-bit offsets."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from tilestream.errors import InputError

MOST_DIRECTORIES = 10_000
"""No image has nearly as many; a file that claims a million would be read for minutes."""


def check_chain(address: str) -> None:
    """Refuse a local file whose directories run in a circle or are too many: see `walk_chain`. Raises InputError."""
    with open(address, "rb") as file:  # noqa: PTH123  # addresses are strings here
        walk_chain(file, os.fstat(file.fileno()).st_size, address)


def walk_chain(file: BinaryIO, size: int, address: str) -> None:
    """Refuse a file of `size` bytes whose directories run in a circle or are too many to be meant.

    Files that are no TIFF, and chains that lead out of the file, are left to those who read them.

    Raises
    ------
    InputError
        With the directory at fault.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return
    version = struct.unpack_from(f"{order}H", head, 2)[0]
    if version == 42:
        count_format, entry, offset_format, offset = "H", 12, "I", struct.unpack_from(f"{order}I", head, 4)[0]
    elif version == 43 and len(head) == 16:
        count_format, entry, offset_format, offset = "Q", 20, "Q", struct.unpack_from(f"{order}Q", head, 8)[0]
    else:
        return
    seen: set[int] = set()
    while 0 < offset < size:
        if offset in seen:
            raise InputError(
                f"{address}: directory {len(seen)} leads back to byte {offset}, where an earlier one lies. The file is damaged; export it again."
            )
        if len(seen) == MOST_DIRECTORIES:
            raise InputError(
                f"{address}: holds more than {MOST_DIRECTORIES} directories, the most that are read. The file is damaged; export it again."
            )
        seen.add(offset)
        file.seek(offset)
        raw = file.read(struct.calcsize(count_format))
        if len(raw) < struct.calcsize(count_format):
            return
        entries = struct.unpack(f"{order}{count_format}", raw)[0]
        if entries * entry > size:
            return
        file.seek(offset + len(raw) + entries * entry)
        raw = file.read(struct.calcsize(offset_format))
        if len(raw) < struct.calcsize(offset_format):
            return
        offset = struct.unpack(f"{order}{offset_format}", raw)[0]
