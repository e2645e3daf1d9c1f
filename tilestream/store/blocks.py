"""Rows of arrays: in blocks that do not depend on how they were cut into shards, read ahead by threads; and damage in them by its name."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from tilestream.errors import IncompleteError
from tilestream.store.folder import Folder
from tilestream.store.layout import BLOCK_ROWS, BLOCKS_AHEAD
from tilestream.store.ledger import Ledger
from tilestream.store.zarr_chunks import chunk_reader, stored_reader

S = TypeVar("S")
T = TypeVar("T")

SERIAL = 32_768
"""Numbers that torch converts without starting threads of its own: those who call are threads already."""


READ_ERRORS = (RuntimeError, ValueError, OSError, KeyError, TypeError)
"""What zarr and its codecs raise on damaged objects; some of it also on a selection that cannot be."""


@contextmanager
def damage_named(folder: Folder, path: str) -> Iterator[None]:
    """Where reading below `path` fails and bytes there are not as they were written, say so in our words; any other error stays what it is.

    Raises
    ------
    IncompleteError
        Naming the store, the object, its rows, and the way out.
    """
    try:
        yield
    except READ_ERRORS as error:
        harm = Ledger(folder).damage_below(path)
        if not harm:
            raise
        more = f" (and {len(harm) - 1} more)" if harm[1:] else ""
        raise IncompleteError(
            f"{folder.address} is damaged: {harm[0]}{_rows_of(folder, harm[0])}{more}. Run `tilestream verify --repair` on it and then its command again."
        ) from error


def _rows_of(folder: Folder, harm: str) -> str:
    """Which rows an object holds, in words; nothing for one that is no shard of an array of tiles."""
    path, between, number = harm.partition(": ")[0].partition("/c/")
    number = number.partition("/")[0]
    if not between or not number.isdecimal():
        return ""
    try:
        array = zarr.open_array(folder.store, path=path, mode="r", zarr_format=3)
    except READ_ERRORS:
        return ""
    step = (array.shards or array.chunks)[0]
    first = int(number) * step
    return f" (rows {first} to {min(first + step, array.shape[0]) - 1})"


def read_rows(folder: Folder, path: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Rows (n, ...) of an array of numbers, chunked by rows alone."""
    described = json.loads(folder.get(f"{path}/zarr.json") or b"{}")
    chunks = stored_reader(folder.store, path, described)
    if chunks is None:
        return np.asarray(zarr.open_array(folder.store, path=path, mode="r", zarr_format=3)[rows])
    start, stop, _ = rows.indices(chunks.grid.shape[0])
    return chunks.rows(start, stop)


class StoredArray(zarr.Array[Any]):
    """A Zarr array of a store of ours, which names damage where it meets it."""

    @classmethod
    def of(cls, folder: Folder, path: str) -> StoredArray:
        """The array at `path`, for reading."""
        with damage_named(folder, path):
            array = cls(zarr.open_array(folder.store, path=path, mode="r", zarr_format=3).async_array)
        object.__setattr__(array, "_folder", folder)  # zarr's arrays are frozen
        return array

    def _read(self, read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        folder: Folder | None = getattr(self, "_folder", None)
        if folder is None:  # made of another one by zarr
            return read(*args, **kwargs)
        with damage_named(folder, self.path):
            return read(*args, **kwargs)

    def __getitem__(self, selection: Any) -> Any:
        """What is selected, as zarr gives it. Raises IncompleteError where what is read is damaged."""
        return self._read(super().__getitem__, selection)

    def get_basic_selection(self, *args: Any, **kwargs: Any) -> Any:
        """As zarr's."""
        return self._read(super().get_basic_selection, *args, **kwargs)

    def get_orthogonal_selection(self, *args: Any, **kwargs: Any) -> Any:
        """As zarr's."""
        return self._read(super().get_orthogonal_selection, *args, **kwargs)

    def get_coordinate_selection(self, *args: Any, **kwargs: Any) -> Any:
        """As zarr's."""
        return self._read(super().get_coordinate_selection, *args, **kwargs)


def map_blocks(
    array: zarr.Array[Any],
    work: Callable[[NDArray[np.float32], int], T],
    skip: int = 0,
    *,
    block_rows: int | None = None,
    threads: int = BLOCKS_AHEAD,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[T]:
    """What `work` makes of each block (m, d) float32 of `block_rows` rows, `BLOCK_ROWS` by default, and the number of its first row, in their order.

    It is called by the threads that read. After each block, `skip` blocks are left out. Rows are those from `start` to `stop`, by default all.
    """
    block_rows = block_rows or BLOCK_ROWS
    chunks = chunk_reader(array)
    end = array.shape[0] if stop is None else stop

    def read(start: int) -> NDArray[np.float32]:
        stop = min(start + block_rows, end)
        if chunks is None:
            return np.asarray(array[start:stop], np.float32)
        out = np.empty((stop - start, *array.shape[1:]), np.float32)
        for first, rows in chunks.pieces(start, stop):
            widen(rows, out[first - start : first - start + len(rows)])
        return out

    yield from map_ahead(lambda first: work(read(first), first), range(start, end, block_rows * (skip + 1)), threads)


def widen(rows: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Write rows (m, ...) of any type to `out`, which is float32: halves by torch, where it is loaded, in a twentieth of the time that numpy takes."""
    torch = sys.modules.get("torch")
    if torch is None or rows.dtype != np.float16 or out.dtype != np.float32 or not rows.flags.writeable or not rows.size:
        out[...] = rows
        return
    step = max(1, SERIAL * len(rows) // rows.size)
    for given, made in zip(torch.from_numpy(rows).split(step), torch.from_numpy(out).split(step), strict=True):
        made.copy_(given)


def map_ahead(work: Callable[[S], T], items: Iterable[S], threads: int = BLOCKS_AHEAD) -> Iterator[T]:
    """What `work` makes of each item, in their order, by threads that run as many items ahead of the caller as there are threads."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="rows") as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
