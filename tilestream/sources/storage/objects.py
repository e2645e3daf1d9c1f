"""Parts of many objects of one store, such as the chunks of a Zarr array, fetched ahead as ranges of one object are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from tilestream.sources.storage.ahead import RangesAhead

SPAN = 2**41
"""Places that each object has for itself: ranges of two objects never lie near each other."""

Fetch = Callable[[str, int, int | None], bytes | None]
"""(key, offset, length) to bytes of an object, None where there is no such object; length None is the whole."""

Part = tuple[str, int, int | None]


@dataclass(frozen=True)
class Whole:
    """An object that is fetched whole, for the sake of parts that its own bytes tell."""

    key: str
    most: int
    """Bytes, at most."""
    parts: Callable[[memoryview], Sequence[tuple[Part, bool]]]
    """Of its bytes the parts that are wanted, and whether the next list wants them too; none where they are damaged. Raises nothing."""


class ObjectsAhead:
    """A `Fetch` that reads ahead what it is told of, each part once. Parts of an object become one request where they are neighbours.

    `whole_bytes` bounds the size of objects that are read whole.
    """

    def __init__(self, fetch: Fetch, whole_bytes: int) -> None:
        self._fetch, self._whole = fetch, whole_bytes
        self._numbers: dict[str, int] = {}
        self._keys: list[str] = []
        self._lock = threading.Lock()
        self._ranges = RangesAhead(self._ask)

    def __call__(self, key: str, offset: int, length: int | None) -> bytes | None:
        if key not in self._numbers:
            return self._fetch(key, offset, length)
        if offset < 0:
            with suppress(FileNotFoundError):
                found = self._ranges.read_end(self._place(key, None), -offset)
                return self._fetch(key, offset, length) if found is None else found
            return None
        if length is not None:
            return self._ranges.read(self._place(key, offset), length)
        try:
            return self._ranges.read(self._place(key, None), self._whole)
        except FileNotFoundError:
            return None

    @contextmanager
    def ahead(self, whole: Mapping[int, Whole], find: Callable[[], Sequence[tuple[int, Part, bool]]], waste: float) -> Iterator[None]:
        """While the block runs, fetch objects whole, and parts of others that are found while the first of those are on their way.

        Both have a number, which says what is read before what; `waste` is the share of unwanted bytes between parts, at most. Parts that the next list wants too stay, as far as there is room.
        """
        places = {self._place(each.key, None): (number, each.most) for number, each in whole.items()}
        unpack = dict(zip(places, (partial(self._unpack, each) for each in whole.values()), strict=True))
        with self._ranges.wholes_ahead(unpack, places) as add:
            found = find()
            starts = [self._place(key, offset if length is not None else None) for _, (key, offset, length), _ in found]
            counts = [self._whole if length is None else length for _, (_, _, length), _ in found]
            add(starts, counts, [again for _, _, again in found], [number for number, _, _ in found], waste)
            yield

    def _place(self, key: str, offset: int | None) -> int:
        """Where an object's bytes lie among those of all; as a whole (None) it is named by the place before."""
        with self._lock:
            if key not in self._numbers:
                self._keys.append(key)
                self._numbers[key] = len(self._keys)
            return self._numbers[key] * SPAN + (-1 if offset is None else offset)

    def _unpack(self, whole: Whole, data: bytes | bytearray) -> list[tuple[int, int, bool]]:
        found = whole.parts(memoryview(data)) if data else ()
        return [(self._place(key, offset), length, again) for (key, offset, length), again in found if length is not None]

    def _ask(self, start: int, end: int) -> Iterator[bytes]:
        number, offset = divmod(start + 1, SPAN)
        key = self._keys[number - 1]
        data = self._fetch(key, offset - 1, end - start) if offset else self._fetch(key, 0, None)
        if data is None:
            raise FileNotFoundError(f"{key} is not there")
        yield data
