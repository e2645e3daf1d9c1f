"""What is known of a local file before its format is: whether it is there, and the digest that tells its bytes from others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tilestream.buffers import read_at
from tilestream.config.local_files import refuse_special
from tilestream.errors import InputError, NotThereError

WHOLE_BYTES = 64 * 1024**2
"""A file of this many bytes, or fewer, goes into its fingerprint whole: in less than a tenth of a second."""

SAMPLES = 1024
"""Places of a larger file that go into its fingerprint."""

SAMPLE_BYTES = 4096
"""Bytes of one of them."""


TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF; DICOM files may have them in their preamble."""

MASK_BESIDE = ".msk"
"""What GDAL puts behind the name of a raster for the file of its mask."""


class NoGridError(InputError):
    """The image is no regular grid of pieces to this backend; another backend may still read it."""


class NotTiffError(NoGridError):
    """The file is no TIFF."""


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
    """Hexadecimal blake2b digest of a file's size and bytes: all of them up to `WHOLE_BYTES`, else `SAMPLES` evenly spaced samples of 4 KiB."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        if size <= WHOLE_BYTES:
            while data := file.read(1024**2):
                digest.update(data)
            return digest.hexdigest()
        # One call a sample: each gives up the interpreter, and beside a device that is fed there is a queue for it.
        starts = np.linspace(0, size - SAMPLE_BYTES, SAMPLES).astype(np.int64).tolist()
        digest.update(b"".join([read_at(file.fileno(), SAMPLE_BYTES, start) for start in starts]))
    return digest.hexdigest()


def join_fingerprints(parts: Iterable[str]) -> str:
    """The fingerprint of a slide from those of its files, the same whichever of them was named and whatever they are called."""
    found = sorted(parts)
    return found[0] if len(found) == 1 else hashlib.blake2b("".join(found).encode(), digest_size=16).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes; of a folder, over the names and digests of its files.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if path.is_dir():
        from tilestream.store.records import digest_of  # with zarr, which processes that decode have no need of

        return digest_of([[file.relative_to(path).as_posix(), file_sha256(file)] for file in sorted(path.rglob("*")) if file.is_file()])
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Put the file back, or change the config.") from error


class FileDigests:
    """SHA-256 of files, each read once, as they were then."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, tuple[int, ...]]] = {}

    def of(self, path: str, key: str) -> str:
        """The digest of a file that a key of the config names. Raises InputError where it cannot be read, or is a pipe or a device."""
        if path not in self._known:
            refuse_special(path, key)
            self._known[path] = file_sha256(Path(path)), look_at(path)
        return self._known[path][0]

    def refuse_changed(self, path: str, key: str) -> None:
        """Refuse a file that was replaced or written since: what was read of it later is not what its digest is of. Raises InputError."""
        digest, look = self._known.get(path, ("", ()))
        if digest and look != look_at(path) and file_sha256(Path(path)) != digest:
            raise InputError(f"{path} ({key}) changed while it was read. Run the same command again once nothing writes to it any more.")


def look_at(path: str) -> tuple[int, ...]:
    """What tells that a file, or a file of a folder, was written, without reading it; empty where nothing is there."""
    there = Path(path)
    found = []
    for file in sorted(there.rglob("*")) if there.is_dir() else [there]:
        try:
            about = file.stat()
        except OSError:
            continue
        found += [about.st_ino, about.st_size, about.st_mtime_ns]
    return tuple(found)
