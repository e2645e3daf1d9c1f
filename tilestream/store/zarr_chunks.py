"""Chunks of a Zarr array straight from the store's objects: one read and one decode each, without zarr's event loop between.

Asked for single chunks, zarr spends several times the decoder's own time, and as much when it writes them. What is understood here is the common case: a regular
grid of C-ordered chunks, coded with `bytes` and at most one of zstd, blosc, gzip and zlib, alone or within shards, in a local folder
or an object store. Anything else is left to zarr.

Sources: https://zarr-specs.readthedocs.io (v2; v3: core, codecs bytes, zstd, blosc, gzip, crc32c, sharding_indexed).
"""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import floordiv
from typing import Any, Protocol, runtime_checkable

import google_crc32c
import numcodecs.zstd
import numpy as np
import zarr.storage
from numpy.typing import NDArray

from tilestream.buffers import ThreadBuffers, read_at
from tilestream.store.object_store import failures_are_oserrors

Decode = Callable[[bytes, NDArray[np.uint8]], object]
"""Fills a flat uint8 array of the decoded size; raises where the bytes are damaged or decode to another size."""

Fetch = Callable[[str, int, int | None], bytes | None]
"""(key, offset, length) to bytes of an object, None where there is no such object. A negative offset counts from its end."""

ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold."""

LITTLE = ("bytes", {"endian": "little"})
ENDIAN_CHECKED = [LITTLE, ("crc32c", {})]
"""The codecs of a shard's index."""

KNOWN_SHARDS = 256
"""Indices of shards that are kept."""


NUMBERS = frozenset({*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"})
"""Types of which zarr's names are numpy's."""

PLAIN_KEYS = {"name": "default", "configuration": {"separator": "/"}}
"""How chunks are named in the arrays that we make."""


@runtime_checkable
class Fetching(Protocol):
    """A store that reads parts of its objects itself."""

    def fetch(self, key: str, offset: int, length: int | None) -> bytes | None: ...


@dataclass(frozen=True)
class ChunkGrid:
    """Where an array's chunks lie, and what stands for those that were never written."""

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """Of a chunk; where objects hold several, of one of these."""
    shards: tuple[int, ...]
    """Of an object."""
    key: Callable[[tuple[int, ...]], str]
    """The name of an object below the array's, from its indices."""
    fill: Any


class ChunkReader:
    """Decoded chunks of one array. Safe to share between threads."""

    def __init__(self, grid: ChunkGrid, fetch: Fetch, decode: Decode, dtype: np.dtype[Any], *, index_first: bool | None) -> None:
        self.grid, self._fetch, self._decode, self._dtype = grid, fetch, decode, dtype
        self._index_first = index_first
        self._shape = grid.chunks
        self._per_shard = tuple(s // c for s, c in zip(grid.shards, grid.chunks, strict=True))
        self._prefix = f"{grid.path}/".lstrip("/")
        self._key = grid.key
        self._bytes = int(np.prod(self._shape)) * dtype.itemsize
        self._buffers = ThreadBuffers()
        self._index_bytes = 16 * int(np.prod(self._per_shard)) + 4
        self._index: dict[tuple[int, ...], NDArray[np.uint64] | None] = {}

    def chunk(self, place: Sequence[int]) -> NDArray[Any]:
        """One chunk, full size also at the array's edge, by its indices in the grid of (inner) chunks.

        May lie in a buffer of the calling thread that its next call overwrites. Raises OSError, ValueError or RuntimeError where it cannot be read or decoded.
        """
        data = self._encoded(tuple(place))
        if data is None:
            return np.full(self._shape, 0 if self.grid.fill is None else self.grid.fill, self._dtype)
        out = self._buffers.get((self._bytes,))
        self._decode(data, out)
        return out.view(self._dtype).reshape(self._shape)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows `start` to `stop` of an array whose chunks span all axes but the first: those of each chunk, and the number of the first. As `chunk`."""
        rows = self._shape[0]
        for number in range(start // rows, -(-stop // rows)):
            first, last = max(start, number * rows), min(stop, (number + 1) * rows)
            chunk = self.chunk((number, *(0 for _ in self._shape[1:])))
            yield first, chunk[first - number * rows : last - number * rows]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """The same as one array of its own."""
        out = np.empty((stop - start, *self.grid.shape[1:]), self._dtype)
        for first, rows in self.pieces(start, stop):
            out[first - start : first - start + len(rows)] = rows
        return out

    def fetch_through(self, wrap: Callable[[Fetch, int], Fetch]) -> None:
        """Read objects through what `wrap` makes of the way to them and of the most bytes that a chunk takes."""
        self._fetch = wrap(self._fetch, 2 * self._bytes + 4096)

    @property
    def sharded(self) -> bool:
        """Whether objects hold several chunks."""
        return self._index_first is not None

    @property
    def most_shard_bytes(self) -> int:
        """Of an object that holds several chunks, at most: no codec makes chunks much larger."""
        return int(np.prod(self._per_shard)) * (self._bytes + self._bytes // 64 + 64) + self._index_bytes

    def unread_shard(self, shard: Sequence[int]) -> tuple[str, int] | None:
        """Key and number of chunks of a shard whose index was not read yet; None where it was, and where objects are single chunks."""
        if self._index_first is None or tuple(shard) in self._index:
            return None
        grid = (-(-side // chunk) for side, chunk in zip(self.grid.shape, self._shape, strict=True))
        held = (min(n, most - s * n) for s, n, most in zip(shard, self._per_shard, grid, strict=True))
        return self._prefix + self._key(tuple(shard)), math.prod(held)

    def learn(self, shard: tuple[int, ...], data: memoryview) -> None:
        """Read the index of a shard from all of its bytes. Raises ValueError where it is damaged."""
        raw = data[: self._index_bytes] if self._index_first else data[-self._index_bytes :]
        self._learn(self._prefix + self._key(shard), shard, bytes(raw))

    def shard_of(self, place: Sequence[int]) -> tuple[int, ...]:
        """The indices of the object that holds a chunk."""
        return tuple(map(floordiv, place, self._per_shard))

    def locate(self, place: Sequence[int]) -> tuple[str, int, int | None] | None:
        """Where a chunk lies: key, offset and length of its object, length None for the whole; None where a shard says that it has none.

        Of a shard the index is read, once. Raises as `chunk`.
        """
        shard = self.shard_of(place)
        key = self._prefix + self._key(shard)
        if self._index_first is None:
            return key, 0, None
        index = self._shard_index(key, shard)
        if index is None:
            return None
        offset, length = index[tuple(p % n for p, n in zip(place, self._per_shard, strict=True))].tolist()
        return None if offset == ABSENT else (key, offset, length)

    def _encoded(self, place: tuple[int, ...]) -> bytes | None:
        found = self.locate(place)
        return None if found is None else self._fetch(*found)

    def _shard_index(self, key: str, shard: tuple[int, ...]) -> NDArray[np.uint64] | None:
        """Offset and length of each chunk of a shard, (..., 2); None where the shard was never written."""
        with suppress(KeyError):  # others may forget it between two looks
            return self._index[shard]
        raw = self._fetch(key, 0 if self._index_first else -self._index_bytes, self._index_bytes)
        return self._learn(key, shard, raw)

    def _learn(self, key: str, shard: tuple[int, ...], raw: bytes | None) -> NDArray[np.uint64] | None:
        """Keep the index of a shard, from its bytes."""
        if raw is not None and (len(raw) != self._index_bytes or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little")):
            raise ValueError(f"the index of shard {key} is damaged")
        if len(self._index) >= KNOWN_SHARDS:
            self._index.clear()
        found = self._index[shard] = None if raw is None else np.frombuffer(raw[:-4], "<u8").reshape(*self._per_shard, 2)
        return found


def chunk_reader(array: Any) -> ChunkReader | None:
    """A reader of a zarr.Array's chunks, or None where zarr itself must read them."""
    fetch, metadata = _fetcher(array.store), array.metadata
    if fetch is None:
        return None
    grid = ChunkGrid(
        array.path, tuple(array.shape), tuple(map(int, array.chunks)), tuple(array.shards or array.chunks), metadata.encode_chunk_key, array.fill_value
    )  # fmt: skip
    if metadata.zarr_format == 2:
        decode = _v2_decoder(metadata)
        return None if decode is None else ChunkReader(grid, fetch, decode, np.dtype(array.dtype), index_first=None)
    return _v3_reader(metadata.to_dict(), grid, fetch, np.dtype(array.dtype))  # what the file says, not what a version of zarr makes of it


def stored_reader(store: Any, path: str, described: Mapping[str, Any]) -> ChunkReader | None:
    """The same of an array of numbers in a store, from its metadata as stored, or None: opening it with zarr takes longer than reading a shard of it."""
    fetch = _fetcher(store)
    if fetch is None or described.get("zarr_format") != 3 or described.get("chunk_key_encoding") != PLAIN_KEYS:
        return None
    if described["data_type"] not in NUMBERS or described["chunk_grid"]["name"] != "regular":
        return None
    shards, codec = tuple(described["chunk_grid"]["configuration"]["chunk_shape"]), described["codecs"][0]
    chunks = tuple(_named(codec)[1].get("chunk_shape", shards))
    dtype = np.dtype(described["data_type"])
    grid = ChunkGrid(path, tuple(described["shape"]), chunks, shards, _plain_key, dtype.type(described["fill_value"]))
    return _v3_reader(described, grid, fetch, dtype)


def _plain_key(place: tuple[int, ...]) -> str:
    return "/".join(["c", *map(str, place)])


def _v3_reader(described: Mapping[str, Any], grid: ChunkGrid, fetch: Fetch, dtype: np.dtype[Any]) -> ChunkReader | None:
    if described["chunk_grid"]["name"] != "regular":
        return None
    codecs = [_named(codec) for codec in described["codecs"]]
    index_first = None
    if len(codecs) == 1 and codecs[0][0] == "sharding_indexed":
        sharding = codecs[0][1]
        plain = [_named(codec) for codec in sharding["index_codecs"]] == ENDIAN_CHECKED
        divides = all(s % c == 0 for s, c in zip(grid.shards, grid.chunks, strict=True))
        if not (plain and divides):
            return None
        codecs, index_first = [_named(codec) for codec in sharding["codecs"]], sharding.get("index_location", "end") == "start"
    if not 1 <= len(codecs) <= 2 or codecs[0][0] != "bytes":
        return None
    decode = _v3_decoder(codecs[1][0] if len(codecs) == 2 else None)
    big = codecs[0][1].get("endian", "little") == "big"
    return None if decode is None else ChunkReader(grid, fetch, decode, dtype.newbyteorder(">" if big else "<"), index_first=index_first)


def encode_shard(described: Mapping[str, Any], rows: slice, values: NDArray[Any]) -> bytes | None:
    """The object of an array's shard, from all of its rows, byte for byte as zarr writes it; None where zarr must: other codecs, rows that are no shard.

    `described` is the array's metadata, as stored. Memory bound: a chunk, and the encoded ones.
    """
    codecs, shape = described["codecs"], described["shape"]
    if described.get("zarr_format") != 3 or len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
        return None
    sharding, shard = codecs[0]["configuration"], described["chunk_grid"]["configuration"]["chunk_shape"]
    chunk, inner = sharding["chunk_shape"], [_named(codec) for codec in sharding["codecs"]]
    plain = [_named(codec) for codec in sharding["index_codecs"]] == ENDIAN_CHECKED and sharding.get("index_location", "end") == "end"
    known = plain and len(inner) == 2 and inner[0] in (LITTLE, ("bytes", {})) and inner[1][0] == "zstd"
    whole = rows.start % shard[0] == 0 and rows.stop == min(rows.start + shard[0], shape[0])
    if not (known and whole and list(chunk[1:]) == list(shard[1:]) == list(shape[1:]) == list(values.shape[1:])):
        return None
    coder = numcodecs.zstd.Zstd(level=inner[1][1]["level"], checksum=inner[1][1]["checksum"])
    given = np.ascontiguousarray(values, np.dtype(described["data_type"]).newbyteorder("<"))
    index, parts = np.full((shard[0] // chunk[0], 2), ABSENT, "<u8"), list[bytes]()
    for number, start in enumerate(range(0, len(given), chunk[0])):
        found = given[start : start + chunk[0]]
        if len(found) < chunk[0]:
            beyond = np.full((chunk[0] - len(found), *chunk[1:]), float(described["fill_value"]), given.dtype)
            found = np.concatenate([found, beyond])
        parts.append(bytes(coder.encode(found)))
        index[number] = sum(map(len, parts[:-1])), len(parts[-1])
    told = index.tobytes()
    return b"".join([*parts, told, google_crc32c.value(told).to_bytes(4, "little")])


def _named(codec: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration of a codec; one without configuration may be its name alone (v3, extension definition)."""
    return (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration") or {})


def _v2_decoder(metadata: Any) -> Decode | None:
    if metadata.filters or metadata.order != "C":
        return None
    compressor = metadata.compressor
    return _decoder("raw" if compressor is None else str(compressor.codec_id))


def _v3_decoder(codec: str | None) -> Decode | None:
    return _decoder({"zstd": "zstd", "blosc": "blosc", "gzip": "gzip", None: "raw"}.get(codec, ""))


def _decoder(name: str) -> Decode | None:
    if name in ("zstd", "blosc"):
        decode: Decode = numcodecs.registry.get_codec({"id": name}).decode
        return decode
    return {"raw": _copy_raw, "gzip": _inflate, "zlib": _inflate}.get(name)


def _copy_raw(data: bytes, out: NDArray[np.uint8]) -> None:
    if len(data) != len(out):
        raise ValueError(f"a chunk of {len(data)} bytes where {len(out)} belong")
    out[:] = np.frombuffer(data, np.uint8)


def _inflate(data: bytes, out: NDArray[np.uint8]) -> None:
    """Decompress gzip or zlib (the header tells), never to more than was asked for."""
    try:
        _copy_raw(zlib.decompressobj(wbits=47).decompress(data, len(out) + 1), out)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _fetcher(store: Any) -> Fetch | None:
    if isinstance(store, Fetching):
        return store.fetch
    if isinstance(store, zarr.storage.LocalStore):
        root = f"{store.root}/"
        return lambda key, offset, length: _pread(root + key, offset, length)
    if "obstore" in sys.modules and isinstance(store, zarr.storage.ObjectStore):
        inner = store.store
        return lambda key, offset, length: _get_range(inner, key, offset, length)
    return None


def _pread(path: str, offset: int, length: int | None) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO waits for who writes into it
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(f"{path} is not a file") from None
        raise
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a file")
        size = found.st_size
        start = offset if offset >= 0 else size + offset
        count = size - start if length is None else length
        if start < 0 or start + count > size:
            raise OSError(f"{path} has {size} bytes, {count} at {start} are wanted. The file is cut off")
        return read_at(file, count, start)
    finally:
        os.close(file)


def _get_range(store: Any, key: str, offset: int, length: int | None) -> bytes | None:
    import obstore

    try:
        with failures_are_oserrors(key):
            if offset >= 0 and length is not None:
                return bytes(obstore.get_range(store, key, start=offset, length=length))
            options: Any = None if length is None else {"range": {"suffix": length}}
            return bytes(obstore.get(store, key, options=options).bytes())
    except FileNotFoundError:
        return None
