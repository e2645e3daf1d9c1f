"""How far a shard in work is: told to who runs the task, and set aside now and then, so that whatever ends the run costs seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.stages.encoding.aside import keep_aside, set_aside
from tilestream.stages.encoding.embedded import Embedded
from tilestream.store.slide_store import SlideStore

TELL_EVERY = 0.5
"""Seconds between two times that a task tells how far it is."""

KEEP_EVERY = 5.0
"""Seconds of work that a process which is killed may lose."""

PIECE_BYTES = 8 * 1024**2
"""Rows that are set aside as one file, bytes at most."""


@dataclass(frozen=True)
class Told:
    """How far a task is."""

    token: str | None
    """Of the run, as the fences of its stores have it."""
    slide: str
    first_shard: int
    """Of the task; with the slide it is the task's name."""
    tiles: int
    """Tiles that it has embedded by now."""
    kept: int
    """Those of them that no interrupt costs."""


_HEARD_BY: ContextVar[Callable[[Told], None] | None] = ContextVar("_HEARD_BY", default=None)


@contextmanager
def heard_by(listener: Callable[[Told], None]) -> Iterator[None]:
    """What tasks tell in this thread while the block runs goes to `listener`."""
    token = _HEARD_BY.set(listener)
    try:
        yield
    finally:
        _HEARD_BY.reset(token)


class Teller:
    """Tells of one task, at most every `TELL_EVERY` seconds."""

    def __init__(self, token: str | None, slide: str, first_shard: int) -> None:
        self._told = Told(token, slide, first_shard, 0, 0)
        self._at = 0.0

    def tell(self, tiles: int, kept: int, *, now: bool = False) -> None:
        """So many tiles are embedded, and so many of them kept."""
        listener, clock = _HEARD_BY.get(), time.monotonic()
        if listener is not None and (now or clock - self._at >= TELL_EVERY):
            self._at = clock
            listener(replace(self._told, tiles=tiles, kept=kept))


@dataclass
class ShardRows:
    """The rows of a shard while they are filled, with those that an earlier try set aside.

    Memory bound
    ------------
    Setting aside copies rows that were not set aside before, `PIECE_BYTES` at a time, while nothing of the shard is encoded yet.
    """

    store: SlideStore
    shard: int
    arrays: dict[str, NDArray[Any]]
    """(n, ...) each, by path in the store; the rows that `errors` and `redone` speak of among them."""
    errors: dict[int, str] = field(default_factory=dict)
    """Why tiles failed, by row of the shard."""
    redone: set[int] = field(default_factory=set)
    """Rows of the shard that were computed in fp32."""

    def __post_init__(self) -> None:
        count = len(next(iter(self.arrays.values())))
        self._done, self._kept = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        self._kept_at = time.monotonic()
        for rows, arrays, told in set_aside(self.store, self.shard):
            if arrays.keys() != self.arrays.keys():  # patch tokens are wanted by now, or no longer
                continue
            for path, values in arrays.items():
                self.arrays[path][rows] = values
            self.errors |= {int(row): cause for row, cause in told["errors"].items()}
            self.redone |= set(told["redone"])
            self._done[rows] = self._kept[rows] = True

    @property
    def open(self) -> NDArray[np.int64]:
        """Rows that are still to be embedded."""
        return np.flatnonzero(~self._done)

    @property
    def done(self) -> int:
        """Rows that are embedded."""
        return int(self._done.sum())

    @property
    def kept(self) -> int:
        """Rows that lie in the store."""
        return int(self._kept.sum())

    def note(self, part: Embedded) -> None:
        """Hear that results were put into their rows; every `KEEP_EVERY` seconds they are set aside."""
        self._done[part.index] = True
        self.redone |= part.redone
        if time.monotonic() - self._kept_at >= KEEP_EVERY:
            self.keep()

    def keep(self) -> None:
        """Set aside what is embedded and was not set aside before."""
        a_row = sum(values.nbytes // len(values) for values in self.arrays.values())
        fresh_rows, step = np.flatnonzero(self._done & ~self._kept), max(1, PIECE_BYTES // a_row)
        for rows in (fresh_rows[start : start + step] for start in range(0, len(fresh_rows), step)):
            fresh = set(rows.tolist())
            told = {"errors": {row: cause for row, cause in self.errors.items() if row in fresh}, "redone": sorted(self.redone & fresh)}
            keep_aside(self.store, self.shard, rows, {path: values[rows] for path, values in self.arrays.items()}, told)
            self._kept[rows] = True
        self._kept_at = time.monotonic()


def placed(part: Embedded, rows: NDArray[np.int64]) -> Embedded:
    """Results whose places are those in a list of `rows`, with the rows as their places."""
    return Embedded(
        rows[part.index],
        part.out,
        {int(rows[k]): failure for k, failure in part.failed.items()},
        frozenset(int(rows[k]) for k in part.redone),
    )
