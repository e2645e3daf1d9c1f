"""Bytes that a file was never given: holes of a copy that was cut short, of which decoders of some codecs, and uncompressed samples, say nothing.

A file system gives zeros for a hole. Some make holes of zeros that were written (`cp --sparse=always`, `fallocate --dig-holes`, ZFS), and black samples are
zeros, as are parts of sound streams. Zeros that were written begin and end wherever they do, and a hole of them is cut to whole blocks within. So a hole is
loss only where the bytes at both its ends are others than 0: by chance that is one in some million holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ReadError
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.tiff.index import TiffLevel

Lost = Sequence[tuple[int, int]]
"""First byte, and that behind the last, of each part of a file that was never written, in order."""

UNCOMPRESSED = 1
"""In the Compression tag."""

MOST_HOLES = 10_000
"""Holes of a file that are looked at."""


@dataclass(frozen=True)
class PiecesAt:
    """Where pieces of one kind lie in a file."""

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    row_bytes: int
    """Bytes of a row of uncompressed samples; 0 of streams."""


def pieces_in(levels: Iterable[TiffLevel], file: int) -> list[PiecesAt]:
    """Where the pieces of levels lie that are in one of the index' files."""
    return [
        PiecesAt(page.offsets, page.counts, int(page.counts.max(initial=0)) // found.grid.height if page.codec == UNCOMPRESSED else 0)
        for found in levels
        for page in found.pages
        if page.file == file
    ]


def lost_parts(stored: ByteSource, pieces: Sequence[PiecesAt]) -> Lost:
    """The parts of a file that are holes beyond doubt: between bytes other than 0, and neither beginning nor ending where a piece, or a row of one, does."""
    return [
        (start, end)
        for start, end in stored.holes(MOST_HOLES)
        if start > 0
        and _is_written(stored, start - 1)
        and not _begins_there(start, pieces)
        and (end == stored.size or (_is_written(stored, end) and not _begins_there(end, pieces)))
    ]


def _is_written(stored: ByteSource, place: int) -> bool:
    """Whether a byte is there and other than 0."""
    try:
        return stored.read(place, 1) != b"\0"
    except ReadError:
        return False


def _begins_there(place: int, pieces: Sequence[PiecesAt]) -> bool:
    """Whether a piece or a row of its samples begins at a byte, so that zeros may do so without chance: a black tile in a file whose tiles are aligned."""
    for each in pieces:
        within = place - each.offsets[(each.offsets <= place) & (place < each.offsets + each.counts)]
        if (within % each.row_bytes == 0 if each.row_bytes else within == 0).any():
            return True
    return False


def refuse_lost(lost: Lost, start: int, count: int) -> None:
    """Refuse a piece of which a part was never written. Raises ReadError."""
    for first, end in lost:
        if first < start + count and start < end:
            missing = min(end, start + count) - max(first, start)
            raise ReadError(
                f"{missing} of its {count} bytes at {start} were never written: the file has a hole from {first} to {end}. Copy it again"
            )
