"""Rows of uncompressed strips: one strip may be a whole image, and any rows of it can be read alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.sources.tiff.coding import SEPARATE, bits_of

BAND_BYTES = 4 * 1024**2
"""Bytes of rows that are read at once where strips are larger."""


def sample_type(page: Any) -> np.dtype[Any] | None:
    """Type of a page's samples as they lie in the file; None where they are packed, compressed or coded in another way."""
    plain = int(page.compression) == 1 and int(page.predictor) == 1 and int(page.fillorder) == 1 and page.dtype is not None
    if not plain or bits_of(page) != 8 * np.dtype(page.dtype).itemsize or int(page.photometric) == 6:
        return None
    kind: np.dtype[Any] = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    return kind


def rows_at_once(page: Any) -> int | None:
    """Rows of a piece where strips are cut into bands; None where they are small enough, or cannot be cut."""
    if page.is_tiled or (kind := sample_type(page)) is None:
        return None
    row = _row_bytes(page, kind)
    strip = min(int(page.rowsperstrip), int(page.imagelength))
    if strip * row <= BAND_BYTES or row == 0:
        return None
    most = max(1, BAND_BYTES // row)
    if strip >= int(page.imagelength):
        return most
    return max(rows for rows in range(1, most + 1) if strip % rows == 0)


def cut_strips(page: Any, offsets: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte offsets and counts of bands of `rows` rows, in the order of the strips, which say where they begin."""
    kind = sample_type(page)
    assert kind is not None, "strips that cannot be cut have no bands"
    row, height = _row_bytes(page, kind), int(page.imagelength)
    strip = min(int(page.rowsperstrip), height)
    starts: list[NDArray[np.int64]] = []
    counts: list[NDArray[np.int64]] = []
    strips = math.ceil(height / strip)
    for number, offset in enumerate(offsets.tolist()):
        held = min(strip, height - (number % strips) * strip)
        first = np.arange(0, held, rows, dtype=np.int64)
        starts.append(offset + first * row)
        counts.append(np.minimum(rows, held - first) * row)
    return np.concatenate(starts), np.concatenate(counts)


def _row_bytes(page: Any, kind: np.dtype[Any]) -> int:
    samples = 1 if int(page.planarconfig) == SEPARATE else int(page.samplesperpixel)
    return int(page.imagewidth) * samples * kind.itemsize
