"""Chunks of a remote Zarr array, fetched ahead of those who decode them: whole objects many at once, those of one shard together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from tilestream.errors import outage
from tilestream.sources.storage.ahead import AHEAD_BYTES, MOST_BYTES, WHOLE_BYTES
from tilestream.sources.storage.fetching import request_pool
from tilestream.sources.storage.objects import Fetch, ObjectsAhead, Part, Whole
from tilestream.sources.storage.ranges import WASTE
from tilestream.store.zarr_chunks import ChunkReader

Chunk = tuple[int, ...]
"""Indices of a chunk."""

MOSTLY = 0.5
"""Of a shard that is asked for whole, the share of its chunks that is wanted, at least."""

SPARED = 0.18
"""Chunks that are asked for with their shard and not wanted, as a share of those that are, at most."""

MOST_WASTE = 0.4
"""Bytes between chunks of other shards that are asked for and not wanted, at most: what whole shards leave of `WASTE`."""


class ChunksAhead:
    """What fetches the chunks of one array ahead; its reader reads through it."""

    def __init__(self, reader: ChunkReader, address: str) -> None:
        self._reader, self._address = reader, address
        reader.fetch_through(self._wrap)

    def _wrap(self, fetch: Fetch, most: int) -> Fetch:
        self._objects = ObjectsAhead(fetch, most)
        return self._objects

    def ahead(self, chunks: Sequence[tuple[Chunk, bool]]) -> AbstractContextManager[None]:
        """While the block runs, fetch chunks in this order; those that the next list wants too stay, as far as there is room. Raises OutageError."""
        order = [self._reader.shard_of(chunk) for chunk, _ in chunks]
        shards: dict[Chunk, list[tuple[Chunk, bool]]] = {}
        first: dict[Chunk, int] = {}
        for number, (shard, chunk) in enumerate(zip(order, chunks, strict=True)):
            shards.setdefault(shard, []).append(chunk)
            first.setdefault(shard, number)
        whole = self._choose_whole(shards, order)

        def find() -> list[tuple[int, Part, bool]]:
            unread = [
                wanted[0][0] for shard, wanted in shards.items() if shard not in whole and self._reader.unread_shard(shard) is not None
            ]
            list(request_pool().map(self._locate, unread))  # the indices, many at once
            rest = ((number, *chunk) for number, (shard, chunk) in enumerate(zip(order, chunks, strict=True)) if shard not in whole)
            return [(number, part, again) for number, chunk, again in rest if (part := self._locate(chunk)) is not None]

        return self._objects.ahead({first[shard]: each for shard, each in whole.items()}, find, self._waste(shards, whole))

    def _waste(self, shards: Mapping[Chunk, Sequence[object]], whole: Mapping[Chunk, object]) -> float:
        """The share of unwanted bytes between chunks that leaves `WASTE` of all, from the numbers of chunks."""
        spared = asked = 0
        for shard in whole:
            unread = self._reader.unread_shard(shard)
            spared, asked = spared + (unread[1] if unread is not None else 0) - len(shards[shard]), asked + len(shards[shard])
        rest = sum(map(len, shards.values())) - asked
        return min(MOST_WASTE, max(WASTE, (WASTE * (rest + asked) - spared) / rest)) if rest else WASTE

    @property
    def ahead_bytes(self) -> int:
        """Most bytes that one `ahead` holds."""
        return MOST_BYTES + (WHOLE_BYTES - AHEAD_BYTES if self._reader.sharded else 0)

    def _choose_whole(self, shards: Mapping[Chunk, list[tuple[Chunk, bool]]], order: Sequence[Chunk]) -> dict[Chunk, Whole]:
        """Shards to ask for in one request, index and all, in order: those of which least is not wanted, as long as that stays within `SPARED`.

        None where so many are read at once (`order` is that of reading) that their bytes would not be bounded.
        """
        most = self._reader.most_shard_bytes
        missing: list[tuple[int, int, Chunk, str]] = []
        for shard, wanted in shards.items():
            count = len({chunk for chunk, _ in wanted})
            if (unread := self._reader.unread_shard(shard)) is not None and count >= MOSTLY * unread[1]:
                missing.append((unread[1] - count, count, shard, unread[0]))
        chosen: dict[Chunk, Whole] = {}
        spared = asked = 0
        for rest, count, shard, key in sorted(missing):
            spared, asked = spared + rest, asked + count
            if spared > SPARED * asked:
                break
            chosen[shard] = Whole(key, most, partial(self._parts, shard, shards[shard]))
        return {shard: chosen[shard] for shard in shards if shard in chosen} if _most_open(order, chosen) * most <= WHOLE_BYTES else {}

    def _parts(self, shard: Chunk, wanted: Sequence[tuple[Chunk, bool]], data: memoryview) -> list[tuple[Part, bool]]:
        """Where chunks lie in a shard that came whole."""
        try:
            self._reader.learn(shard, data)
        except ValueError:  # who reads it is told
            return []
        return [(part, again) for chunk, again in wanted if (part := self._locate(chunk)) is not None]

    def _locate(self, chunk: Chunk) -> Part | None:
        """Where a chunk lies; None where there is none, or what says so is damaged: who reads it is told."""
        try:
            return self._reader.locate(chunk)
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            if (lost := outage(error, self._address)) is not None:
                raise lost from error
            return None


def _most_open(order: Sequence[Chunk], chosen: Mapping[Chunk, object]) -> int:
    """How many of the shards chosen are being read at once, at most: their first chunk was, and their last was not."""
    last = {shard: place for place, shard in enumerate(order) if shard in chosen}
    now, most = set[Chunk](), 0
    for place, shard in enumerate(order):
        if shard in last:
            now.add(shard)
            most = max(most, len(now))
            if last[shard] == place:
                now.remove(shard)
    return most
