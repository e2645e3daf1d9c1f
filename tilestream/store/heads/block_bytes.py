"""Blocks of label images as the objects that zarr would write, byte for byte, without its event loop: encoded where the caller is, outside the GIL.

Source: https://zarr-specs.readthedocs.io (v3: core, codecs sharding_indexed, bytes, zstd, crc32c). Chunks lie in a shard in Morton order, the index at its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numcodecs.zstd
import numpy as np
from numpy.typing import NDArray

from tilestream.store.anndata_tables import CHECKED
from tilestream.store.zarr_chunks import ABSENT


def encode_block(values: NDArray[Any], side: int, chunk: int, fill: float) -> bytes | None:
    """The object of a block (..., h, w) that may be cut short at the image's edge; None where all of it is `fill`.

    Memory bound: a chunk, and the encoded ones.
    """
    coder = numcodecs.zstd.Zstd(level=CHECKED.level, checksum=CHECKED.checksum)
    lead, many = values.shape[:-2], side // chunk
    places = (*lead, many, many)
    index = np.full((*places, 2), ABSENT, "<u8")
    parts, start = [], 0
    for place in morton_order(places):
        *channel, row, col = place
        plane: NDArray[Any] = values[channel[0]] if channel else values
        found = plane[row * chunk : (row + 1) * chunk, col * chunk : (col + 1) * chunk]
        if found.size == 0 or _holds_only(found, fill):
            continue
        if found.shape != (chunk, chunk):
            whole = np.full((chunk, chunk), fill, values.dtype)
            whole[: found.shape[0], : found.shape[1]] = found
            found = whole
        data = bytes(coder.encode(np.ascontiguousarray(found)))
        index[place] = start, len(data)
        parts.append(data)
        start += len(data)
    if not parts:
        return None
    told = index.tobytes()
    return b"".join([*parts, told, google_crc32c.value(told).to_bytes(4, "little")])


def _holds_only(values: NDArray[Any], fill: float) -> bool:
    return not values.any() if fill == 0 else bool(np.isnan(values).all())


def morton_order(sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places of a grid in the order of the bits of their numbers, dealt out in turn, the first axis first."""
    bits = [(side - 1).bit_length() for side in sides]
    turns = [axis for bit in range(max(bits)) for axis in range(len(sides)) if bit < bits[axis]]
    for code in range(1 << sum(bits)):
        place, level = [0] * len(sides), [0] * len(sides)
        for turn, axis in enumerate(turns):
            place[axis] |= (code >> turn & 1) << level[axis]
            level[axis] += 1
        if all(at < side for at, side in zip(place, sides, strict=True)):
            yield tuple(place)


def coarser_block(reader: Any, place: tuple[int, int], sides: tuple[int, int], block: int, chunk: int, lead: int) -> NDArray[Any]:
    """Every second pixel of up to 2 x 2 blocks of a level of `sides` px: the block at `place` of the next level, (..., h, w).

    Memory bound: the block and a chunk.
    """
    row, col = (2 * at * block for at in place)
    end_row, end_col = (min(start + 2 * block, side) for start, side in zip((row, col), sides, strict=True))
    found: NDArray[Any] | None = None
    for channel, y, x in itertools.product(range(lead or 1), range(row, end_row, chunk), range(col, end_col, chunk)):
        values = reader.chunk((*((channel,) if lead else ()), y // chunk, x // chunk)).reshape(chunk, chunk)
        if found is None:
            found = np.empty((*((lead,) if lead else ()), -(-(end_row - row) // 2), -(-(end_col - col) // 2)), values.dtype)
        first_y, first_x = (y - row) % 2, (x - col) % 2
        part = values[first_y : end_row - y : 2, first_x : end_col - x : 2]
        at_y, at_x = -(-(y - row) // 2), -(-(x - col) // 2)
        target = found[channel] if lead else found
        target[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]] = part
    assert found is not None, "a block has pixels"
    return found
