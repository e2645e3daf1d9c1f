"""Images whose files store them in pieces: tiles and strips of TIFF, frames of DICOM."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ReadError
from tilestream.geometry import Level, Region
from tilestream.sources.base import Pixels, SegmentGrid, Source
from tilestream.sources.storage.contract import ByteSource

MAX_PIECE_BYTES = 256 * 1024**2
"""Largest piece, encoded or decoded, that is read; a scanner's tiles are below 1 MiB."""


def can_be_read(starts: NDArray[Any], counts: NDArray[Any], size: int) -> NDArray[np.bool_]:
    """Whether pieces of `counts` bytes at `starts`, arrays of one shape, lie in a file of `size` bytes and are of believable length."""
    there: NDArray[np.bool_] = (counts > 0) & (counts <= MAX_PIECE_BYTES) & (starts > 0) & (starts + counts <= size)
    return there


def read_piece(stored: ByteSource, start: int, count: int) -> bytes:
    """The encoded bytes of a piece.

    Raises
    ------
    ReadError
        It lies beyond the file's end, or is too long to be believed.
    """
    if start <= 0 or count <= 0 or start + count > stored.size:
        raise ReadError(f"{count} bytes at {start} lie beyond the file's {stored.size}. The file is cut off; copy it again")
    if count > MAX_PIECE_BYTES:
        raise ReadError(f"{count / 2**20:.0f} MiB for one piece, the limit is {MAX_PIECE_BYTES // 2**20} MiB")
    return stored.read(start, count)


class StoredLevel(Protocol):
    """A level as a format keeps it."""

    @property
    def level(self) -> Level: ...
    @property
    def grid(self) -> SegmentGrid: ...


L = TypeVar("L", bound=StoredLevel)


class FileTileSource(Source, Generic[L]):
    """An image whose levels are regular grids of pieces that its files store: tiles and strips of TIFF, frames of DICOM.

    A format sets `_levels` and implements `_segment` and `_stream`, which do for one piece of a level what `read_segment` and `encoded_segment` do,
    and raise ReadError; which piece it was is told here.
    """

    _levels: tuple[L, ...]
    """As `info.levels`."""

    @abstractmethod
    def _segment(self, found: L, row: int, col: int, out: Pixels | None) -> Pixels | None: ...

    @abstractmethod
    def _stream(self, found: L, row: int, col: int) -> bytes | None: ...

    def _read(self, level: int, region: Region) -> Pixels:
        return self._read_pieces(level, region)

    def segment_grid(self, level: int) -> SegmentGrid:
        """The grid of pieces of a level."""
        return self._levels[level].grid

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels | None:
        """(h, w, 3) uint8 of one piece, full-size or cropped to the image; None where the file holds nothing for it.

        May be `out`, or a buffer of the calling thread that its next call overwrites. Raises ReadError.
        """
        found = self._levels[level]
        grid = found.grid
        if not (0 <= row < grid.rows and 0 <= col < grid.cols):
            raise IndexError(f"file tile ({row}, {col}) of a grid of {grid.rows} x {grid.cols}")
        try:
            return self._segment(found, row, col, out)
        except ReadError as error:
            raise self._placed(error, level, row, col) from error

    def encoded_segment(self, level: int, row: int, col: int) -> bytes | None:
        """The complete JPEG stream of one piece, for a decoder elsewhere; None where the file holds nothing for it. Raises ReadError."""
        try:
            return self._stream(self._levels[level], row, col)
        except ReadError as error:
            raise self._placed(error, level, row, col) from error

    def _placed(self, error: ReadError, level: int, row: int, col: int) -> ReadError:
        """What went wrong, with the piece on which it did."""
        return ReadError(f"{self.info.address}: level {level}, file tile ({row}, {col}): {error}")


def part_seen(found: StoredLevel, row: int, col: int) -> tuple[int, int]:
    """Height and width, px of the level, of the part of a piece that lies in the image."""
    grid, size = found.grid, found.level.size
    return min(grid.height, size.height - row * grid.height), min(grid.width, size.width - col * grid.width)


def refuse_small(found: StoredLevel, row: int, col: int, height: int, width: int) -> None:
    """Refuse a JPEG stream that does not cover its part of the image, which a decoder elsewhere would not notice. Raises ReadError."""
    seen = part_seen(found, row, col)
    if height < seen[0] or width < seen[1]:
        raise ReadError(f"JPEG of {height} x {width} px, too small for its part of the image")
