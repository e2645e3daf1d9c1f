"""What is known of a local file before its format is: whether it is there, and the digest that tells its bytes from others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from tilestream.config.local_files import refuse_special
from tilestream.errors import InputError, NotThereError

SAMPLES = 16
"""Samples that a fingerprint takes, evenly spaced, the head and the tail of the file included."""

SAMPLE_BYTES = 4096
"""Length of one sample, bytes."""


class NoGridError(InputError):
    """The image is no regular grid of pieces to this backend; another backend may still read it."""


def checked_file(address: str) -> Path:
    """The path of an existing, readable, non-empty file. Raises InputError."""
    path = Path(address)
    refuse_special(path)
    try:
        if path.is_dir():
            raise InputError(f"{address}: is a folder, not an image file. Name the image inside it.")
        size = path.stat().st_size
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError as error:
        raise NotThereError(f"{address}: no such file. Check the path; relative paths start at {Path.cwd()}.") from error
    except OSError as error:
        raise InputError(f"{address}: cannot be opened: {error.strerror or error}.") from error
    if size == 0:
        raise InputError(f"{address}: the file is empty (0 bytes). Copy it again from its origin.")
    return path


def starts_as_zip(path: Path) -> bool:
    """Whether a file begins as ZIP files do."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def fingerprint_file(path: Path) -> str:
    """Hexadecimal blake2b digest of the file's size and of 16 evenly spaced samples of 4 KiB; all bytes where there are fewer."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        for start in sample_starts(size):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def sample_starts(size: int) -> list[int]:
    """Byte offsets of the samples of a file of `size` bytes."""
    if size <= SAMPLES * SAMPLE_BYTES:
        return list(range(0, size, SAMPLE_BYTES))
    return [int(start) for start in np.linspace(0, size - SAMPLE_BYTES, SAMPLES).astype(np.int64)]
