"""Rows of an array in blocks that do not depend on how they were cut into shards, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.store.zarr_chunks import chunk_reader

T = TypeVar("T")

BLOCK_ROWS = 2048
"""Rows of a block."""

BLOCKS_AHEAD = 4
"""Blocks that are read while the caller works on one."""


def map_blocks(
    array: zarr.Array[Any],
    work: Callable[[NDArray[np.float32]], T],
    skip: int = 0,
    *,
    block_rows: int | None = None,
    threads: int = BLOCKS_AHEAD,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[T]:
    """What `work` makes of each block (m, d) float32 of `block_rows` rows, `BLOCK_ROWS` by default, in their order; it is called by the threads that read.

    After each block, `skip` blocks are left out. Rows are those from `start` to `stop`, by default all.
    """
    block_rows = block_rows or BLOCK_ROWS
    chunks = chunk_reader(array)
    end = array.shape[0] if stop is None else stop

    def read(start: int) -> NDArray[np.float32]:
        stop = min(start + block_rows, end)
        if chunks is None:
            return np.asarray(array[start:stop], np.float32)
        rows = array.chunks[0]
        out = np.empty((stop - start, *array.shape[1:]), np.float32)
        for number in range(start // rows, -(-stop // rows)):
            first, last = max(start, number * rows), min(stop, (number + 1) * rows)
            chunk = chunks.chunk((number, *(0 for _ in array.shape[1:])))
            out[first - start : last - start] = chunk[first - number * rows : last - number * rows]
        return out

    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="rows") as pool:
        for first in range(start, end, block_rows * (skip + 1)):
            pending.append(pool.submit(lambda first: work(read(first)), first))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
