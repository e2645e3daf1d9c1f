"""Parts of many objects of one store, such as the chunks of a Zarr array, fetched ahead as ranges of one object are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tilestream.sources.storage.ahead import RangesAhead

SPAN = 2**41
"""Places that each object has for itself, the upper half of them for the object as a whole: ranges of two objects never lie near each other."""

Fetch = Callable[[str, int, int | None], bytes | None]
"""(key, offset, length) to bytes of an object, None where there is no such object; length None is the whole."""

Part = tuple[str, int, int | None]


class ObjectsAhead:
    """A `Fetch` that reads ahead what it is told of, each part once. Parts of an object become one request where they are neighbours.

    `whole_bytes` bounds the size of objects that are read whole.
    """

    def __init__(self, fetch: Fetch, whole_bytes: int) -> None:
        self._fetch, self._whole = fetch, whole_bytes
        self._numbers: dict[str, int] = {}
        self._keys: list[str] = []
        self._ranges = RangesAhead(self._ask)

    def __call__(self, key: str, offset: int, length: int | None) -> bytes | None:
        number = self._numbers.get(key)
        if number is None or offset < 0:
            return self._fetch(key, offset, length)
        if length is not None:
            return self._ranges.read(number * SPAN + offset, length)
        data = self._ranges.read(number * SPAN + SPAN // 2, self._whole)
        return data[1:] if data else None

    @contextmanager
    def ahead(self, parts: Sequence[Part], again: Sequence[bool]) -> Iterator[None]:
        """While the block runs, fetch parts in this order; those that the next list asks for `again` stay, as far as there is room."""
        for key, _, _ in parts:
            if key not in self._numbers:
                self._keys.append(key)
                self._numbers[key] = len(self._keys) - 1
        starts = [self._numbers[key] * SPAN + (SPAN // 2 if length is None else offset) for key, offset, length in parts]
        counts = [self._whole if length is None else length for _, _, length in parts]
        with self._ranges.ahead(starts, counts, again):
            yield

    def _ask(self, start: int, end: int) -> Iterator[bytes]:
        number, offset = divmod(start, SPAN)
        key = self._keys[number]
        if offset < SPAN // 2:
            data = self._fetch(key, offset, end - start)
            if data is None:
                raise FileNotFoundError(f"{key} is gone")
            yield data
        elif (data := self._fetch(key, 0, None)) is not None:
            yield b"\1" + data
