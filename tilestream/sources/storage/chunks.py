"""Chunks of a remote Zarr array, fetched ahead of those who decode them: whole objects many at once, those of one shard together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tilestream.errors import outage
from tilestream.sources.storage.fetching import request_pool
from tilestream.sources.storage.objects import Fetch, ObjectsAhead, Part
from tilestream.store.zarr_chunks import ChunkReader

Chunk = tuple[int, ...]
"""Indices of a chunk."""


class ChunksAhead:
    """What fetches the chunks of one array ahead; its reader reads through it."""

    def __init__(self, reader: ChunkReader, address: str) -> None:
        self._reader, self._address = reader, address
        reader.fetch_through(self._wrap)

    def _wrap(self, fetch: Fetch, most: int) -> Fetch:
        self._objects = ObjectsAhead(fetch, most)
        return self._objects

    @contextmanager
    def ahead(self, chunks: Sequence[tuple[Chunk, bool]]) -> Iterator[None]:
        """While the block runs, fetch chunks in this order; those that the next list wants too stay, as far as there is room. Raises OutageError."""
        first = {self._reader.shard_of(chunk): chunk for chunk, _ in chunks}
        list(request_pool().map(self._locate, first.values()))  # the indices of shards, many at once
        found = [(part, again) for chunk, again in chunks if (part := self._locate(chunk)) is not None]
        with self._objects.ahead([part for part, _ in found], [again for _, again in found]):
            yield

    def _locate(self, chunk: Chunk) -> Part | None:
        """Where a chunk lies; None where there is none, or what says so is damaged: who reads it is told."""
        try:
            return self._reader.locate(chunk)
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            if (lost := outage(error, self._address)) is not None:
                raise lost from error
            return None
