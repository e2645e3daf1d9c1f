"""Tile batches made on the device: the host reads encoded pieces, the device decodes each once and gathers tiles from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.errors import ReadError
from tilestream.sources.base import WHITE, Source
from tilestream.tiles.decoding.processes import Decoded, DecodeProcesses, SharedPixels
from tilestream.tiles.device_decoding import HostDecoder, StreamDecoder
from tilestream.tiles.device_gather import GATHER_PIXELS, copy_pieces, gather_tiles
from tilestream.tiles.read_spec import GROUPS_IN_WORK, UNIT_PIECES, ReadSpec, group_pieces, host_group
from tilestream.tiles.tile_reader import Failure, Index, pair_pieces

GROUP_PIECES = 256
"""Pieces decoded by one call: enough to fill the device, few enough that the first batch comes soon."""

GROUPS_AHEAD = GROUPS_IN_WORK - 2
"""Groups that are being read, or wait, while another is decoded or sent."""

WHITE_SLOT = 0
"""Place in the arena of a piece that is all white."""


def can_decode_on_device(source: Source, level: int) -> bool:
    """Whether a level is pieces of JPEG that need nothing but decoding to become pixels."""
    return source.has_jpeg_streams(level)


Fetched = bytes | Decoded
"""A stream, or the number of a decoded piece; why there is none; None for background."""


@dataclass(frozen=True)
class DeviceTileBatch:
    """Tiles that are ready, in the order of reading."""

    index: Index
    """(n,) place of each tile in the list that was asked for."""
    pixels: Tensor
    """(n, tile, tile, 3) uint8 RGB on the decoder's device; undefined where the tile failed."""
    failed: dict[int, Failure] = field(default_factory=dict)
    """Why reading failed, by place in the list that was asked for."""
    ready: torch.cuda.Event | None = None
    """What another stream must wait for before it touches the pixels."""


class DeviceTileReader:
    """Reads lists of tiles of one image whose level has a grid of pieces; for a `StreamDecoder` they must be JPEG (`can_decode_on_device`).

    Threads of the pool read encoded bytes, or with a `HostDecoder` decode them or have its processes do so; the thread that iterates has the device decode and
    gather, on its current CUDA stream. Tiles equal `TileReader`'s as far as the decoder's pixels do; averaged ones exactly where the factor is whole and tiles start on whole
    pixels, else within 1 grey level, since sums are taken in another order.

    Order
    -----
    Tiles come in the order in which their last piece is read, which depends on the tile list alone: pieces are visited as `TileReader` visits them.

    Memory bound
    ------------
    On the device: pieces from when they are decoded until the last batch that needs them is taken (two neighbouring rows
    or columns, a group of `GROUP_PIECES`, and a batch's worth) at `height * width * 3` bytes each; one group of the decoder's;
    `GATHER_PIXELS` at 20 bytes (40 where averaged), where no kernel gathers; the batch. On the host: the encoded bytes of `GROUPS_AHEAD` + 1 groups, or the
    decoder's pixels of `GROUPS_IN_WORK` groups.
    """

    def __init__(
        self,
        source: Source,
        spec: ReadSpec,
        *,
        decoder: StreamDecoder | HostDecoder,
        pool: Executor,
        threads: int,
        batch: int,
    ) -> None:
        on_host = isinstance(decoder, HostDecoder) and source.segment_grid(spec.level) is not None
        assert on_host or can_decode_on_device(source, spec.level), "the caller asks can_decode_on_device first"
        self.source, self.spec, self.decoder = source, spec, decoder
        self.pool, self.threads, self.batch = pool, threads, batch

    def read(self, l0_y: Index, l0_x: Index) -> Iterator[DeviceTileBatch]:
        """Batches of the tiles whose level-0 top-left corners are (n,) `l0_y`, `l0_x`. A tile that fails is in `failed`."""
        if len(l0_y) == 0:
            return
        shard = _Shard(self.source, self.spec, self.decoder, (self.spec.px_origins(l0_y), self.spec.px_origins(l0_x)), self.batch)
        with self.source.ahead(self.spec.level, map(tuple, shard.plan.places.tolist())):
            yield from self._read(shard)

    def _read(self, shard: _Shard) -> Iterator[DeviceTileBatch]:
        """The batches of a list, its groups read a bounded number ahead."""
        pending: deque[list[Future[list[Fetched]]]] = deque()
        submitted = number = 0
        try:
            for group in range(shard.plan.groups):
                while submitted < shard.plan.groups and submitted <= group + GROUPS_AHEAD:
                    pending.append(self._submit(shard, submitted))
                    submitted += 1
                shard.decode(group, [data for future in pending.popleft() for data in future.result()])
                while number < len(shard.plan.group_of_batch) and shard.plan.group_of_batch[number] <= group:
                    yield shard.take(number)
                    number += 1
        finally:
            for future in (future for futures in pending for future in futures):
                if not future.cancel():
                    future.exception()

    def _submit(self, shard: _Shard, group: int) -> list[Future[list[Fetched]]]:
        """Have threads read a group of pieces, or decode them."""
        places = shard.places(group)
        memory = None
        if isinstance(self.decoder, HostDecoder):
            memory = self.decoder.open(group, len(places), shard.grid.height, shard.grid.width)
            shared, processes = self.decoder.shared[group % GROUPS_IN_WORK], self.decoder.processes
            if processes is not None and shared is not None and not self.source.fetched:  # what is fetched ahead is this process's
                units = range(0, len(places), UNIT_PIECES)
                return [self.pool.submit(self._ask, processes, places[k : k + UNIT_PIECES], k, shared, memory.shape) for k in units]
        parts = np.array_split(np.arange(len(places)), max(1, min(self.threads, len(places))))
        return [self.pool.submit(self._fetch, places[part], int(part[0]) if len(part) else 0, memory) for part in parts]

    def _ask(self, processes: DecodeProcesses, places: Index, first: int, shared: SharedPixels, shape: tuple[int, ...]) -> list[Fetched]:
        """`_fetch` by a process, into memory that it shares."""
        return [*processes.decode(self.source.opened_as, self.spec.level, places, first, shared, shape)]

    def _fetch(self, places: Index, first: int, memory: NDArray[np.uint8] | None) -> list[Fetched]:
        """The pieces at (k, 2) `places`, row and column, as streams, or as their numbers in `memory` from `first` on."""
        found: list[Fetched] = []
        for number, (row, col) in enumerate(places.tolist(), first):
            try:
                found.append(self._stream(row, col) if memory is None else self._decode(row, col, number, memory[number]))
            except ReadError as error:
                found.append(error)
        return found

    def _stream(self, row: int, col: int) -> bytes | None:
        return self.source.encoded_segment(self.spec.level, row, col)

    def _decode(self, row: int, col: int, number: int, out: NDArray[np.uint8]) -> int | None:
        pixels = self.source.read_segment(self.spec.level, row, col, out)
        if pixels is None:
            return None
        if pixels is not out:
            out[: pixels.shape[0], : pixels.shape[1]] = pixels
        return number


@dataclass(frozen=True)
class _Plan:
    """Which piece is decoded when, where it is kept, and which tiles are made from it."""

    places: Index
    """(p, 2) row and column of the pieces in order of reading."""
    groups: int
    """Calls of the decoder."""
    group_pieces: int
    """Pieces of each call but the last."""
    order: Index
    """(n,) tiles in order of completion."""
    piece_of: Index
    """(n, rows + 1, cols + 1) piece at each place of a tile's own small grid; p, which is white, where there is none and at the rim."""
    group_of_batch: list[int]
    """The group after which each batch is complete; never falling."""
    slots: Index
    """(p + 1,) where in the arena each piece is kept; `WHITE_SLOT` for the last, which is white."""
    capacity: int
    """Pieces that the arena must hold."""


class _Shard:
    """One list of tiles on its way from streams to batches."""

    def __init__(
        self,
        source: Source,
        spec: ReadSpec,
        decoder: StreamDecoder | HostDecoder,
        origins: tuple[NDArray[np.float64], NDArray[np.float64]],
        batch: int,
    ) -> None:
        self.source, self.spec, self.decoder, self.batch = source, spec, decoder, batch
        self.px = np.stack(origins)  # (2, n)
        self.start = np.floor(self.px).astype(np.int64)
        grid = source.segment_grid(spec.level)
        assert grid is not None, "the reader was asked for a level of pieces"
        self.grid, self.size = grid, source.info.levels[spec.level].size
        end = np.ceil(self.px + spec.extent - 1e-9).astype(np.int64) if spec.resampled else self.start + spec.tile
        pairs = pair_pieces((self.start[0], self.start[1]), (end[0], end[1]), self.grid, self.size)
        most = GROUP_PIECES
        if isinstance(decoder, HostDecoder):
            most = host_group(decoder.processes.count if decoder.processes else 0)
        first = np.maximum(self.start, 0) // np.array([[self.grid.height], [self.grid.width]])
        self.plan = _make_plan(pairs, first, batch, group_pieces(self.grid, most))
        self.slots = self.plan.slots.copy()
        self.pair_piece = np.repeat(np.arange(len(self.plan.places)), np.diff(_piece_starts(*pairs[:2]), append=len(pairs[0])))
        self.pair_tile = pairs[2]
        self.failed: dict[int, Failure] = {}
        self.device = decoder.device
        self.arena = torch.empty(self.plan.capacity, self.grid.height, self.grid.width, 3, dtype=torch.uint8, device=self.device)
        self.arena[WHITE_SLOT] = WHITE

    def places(self, group: int) -> Index:
        """(k, 2) row and column of a group's pieces."""
        first = group * self.plan.group_pieces
        return self.plan.places[first : first + self.plan.group_pieces]

    def decode(self, group: int, fetched: list[Fetched]) -> None:
        """Put the pieces of a group into their places in the arena."""
        first = group * self.plan.group_pieces
        streams: list[bytes] = []
        numbers: list[int] = []
        pieces, broken = [], {}
        for piece, data in enumerate(fetched, first):
            if isinstance(data, ReadError):
                broken[piece] = str(data)
            elif data is None:
                self.slots[piece] = WHITE_SLOT
            elif isinstance(data, bytes):
                streams.append(data)
                pieces.append(piece)
            else:
                numbers.append(data)
                pieces.append(piece)
        if isinstance(self.decoder, HostDecoder):
            if numbers:
                copy_pieces(self.arena, self._upload(self.slots[pieces]), self.decoder.send(group, numbers))
        elif streams:
            pixels, failures = self.decoder.decode(streams, self.grid.height, self.grid.width)
            copy_pieces(self.arena, self._upload(self.slots[pieces]), pixels)
            for k, reason in failures.items():
                row, col = self.plan.places[pieces[k]].tolist()
                broken[pieces[k]] = f"{self.source.info.address}: level {self.spec.level}, file tile ({row}, {col}): {reason}"
        for piece in sorted(broken):
            low, high = np.searchsorted(self.pair_piece, [piece, piece + 1])
            self.failed.update(dict.fromkeys(self.pair_tile[low:high].tolist(), Failure(broken[piece])))

    def take(self, number: int) -> DeviceTileBatch:
        """A batch whose pieces are all decoded."""
        index = self.plan.order[number * self.batch : (number + 1) * self.batch]
        step = max(1, GATHER_PIXELS // self.spec.cover**2) if self.spec.resampled else max(1, len(index))
        parts = [self._make_tiles(index[k : k + step]) for k in range(0, len(index), step)]
        pixels = parts[0] if len(parts) == 1 else torch.cat(parts)
        return DeviceTileBatch(index, pixels, {k: self.failed[k] for k in index.tolist() if k in self.failed})

    def _make_tiles(self, tiles: Index) -> Tensor:
        """(n, tile, tile, 3) uint8 of (n,) tiles."""
        cover = self._gather(tiles)
        if not self.spec.resampled:
            return cover
        offset = self.px[:, tiles] - self.start[:, tiles]
        factor = self.spec.extent / self.spec.tile
        if factor == round(factor) and not offset.any():
            return _block_mean(cover, round(factor), self.spec.tile)
        y, x = self._upload(offset)
        return _weighted_mean(cover, y, x, factor, self.spec.tile)

    def _gather(self, tiles: Index) -> Tensor:
        """(n, cover, cover, 3) uint8 of the level under (n,) tiles, white outside the image."""
        slots = self._upload(self.slots[self.plan.piece_of[tiles]])  # (n, rows + 1, cols + 1)
        return gather_tiles(self.arena, slots, self._upload(self.start[:, tiles]), self.spec.cover, self.grid, self.size)

    def _upload(self, values: NDArray[Any]) -> Tensor:
        """From pinned memory: a copy from any other waits until the device has done all that was asked of this stream before."""
        found = torch.from_numpy(np.ascontiguousarray(values))
        return found.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else found


def _block_mean(cover: Tensor, factor: int, size: int) -> Tensor:
    """(n, size, size, 3) uint8 mean of factor x factor blocks of (n, c, c, 3) uint8, rounded half up, in integers."""
    blocks = cover[:, : size * factor, : size * factor].reshape(-1, size, factor, size, factor, 3)
    area = factor * factor
    return ((blocks.sum((2, 4), dtype=torch.int32) + area // 2) // area).to(torch.uint8)


def _weighted_mean(cover: Tensor, y: Tensor, x: Tensor, factor: float, size: int) -> Tensor:
    """(n, size, size, 3) uint8 area average of (n, c, c, 3) uint8 from (n,) y, x on, `factor` pixels a side, rounded half up."""
    count, side = cover.shape[:2]
    rows = torch.bmm(_weights(y, factor, size, side), cover.reshape(count, side, side * 3).float())  # (n, size, c * 3)
    turned = rows.reshape(count, size, side, 3).transpose(1, 2).reshape(count, side, size * 3)
    mean = torch.bmm(_weights(x, factor, size, side), turned)  # (n, size x, size y * 3)
    return (mean + 0.5).to(torch.uint8).reshape(count, size, size, 3).transpose(1, 2).contiguous()


def _weights(offset: Tensor, factor: float, size: int, length: int) -> Tensor:
    """(n, size, length) float32: the share of each of `length` pixels in bins `[offset + i * factor, offset + (i + 1) * factor)`."""
    low = offset[:, None, None] + torch.arange(size, device=offset.device, dtype=torch.float64)[:, None] * factor
    pixel = torch.arange(length, device=offset.device, dtype=torch.float64)
    overlap = (torch.minimum(pixel + 1, low + factor) - torch.maximum(pixel, low)).clamp_(min=0)
    return (overlap / overlap.sum(-1, keepdim=True)).float()


def _piece_starts(row: Index, col: Index) -> Index:
    """Where in the (p,) overlaps each piece's own begin."""
    return np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(col, prepend=-1) != 0))


def _make_plan(pairs: tuple[Index, Index, Index], first: Index, batch: int, group: int) -> _Plan:
    """The plan for n tiles from the overlaps of pieces and tiles in order of reading, and (2, n) `first`, each tile's first piece."""
    row, col, tile = pairs
    starts = _piece_starts(row, col)
    count, n = len(starts), first.shape[1]
    piece = np.repeat(np.arange(count), np.diff(starts, append=len(row)))
    last = np.full(n, -1, np.int64)
    np.maximum.at(last, tile, piece)
    order = np.argsort(last, kind="stable").astype(np.int64)
    ends = last[order][np.minimum(np.arange(batch, n + batch, batch), n) - 1]  # the last piece of each batch
    group_of_batch = np.maximum(ends // group, 0)
    down, right = row - first[0, tile], col - first[1, tile]
    piece_of = np.full((n, int(down.max(initial=0)) + 2, int(right.max(initial=0)) + 2), count, np.int64)
    piece_of[tile, down, right] = piece
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    until = np.zeros(count, np.int64)  # the group after which a piece is needed no more
    np.maximum.at(until, piece, group_of_batch[rank[tile] // batch])
    slots, capacity = _plan_slots(until, group)
    groups = max(1, -(-count // group))
    return _Plan(np.stack([row[starts], col[starts]], 1), groups, group, order, piece_of, group_of_batch.tolist(), slots, capacity)


def _plan_slots(until: Index, group: int) -> tuple[Index, int]:
    """(p + 1,) slots in the arena, used again once a piece is needed no more, and how many there are; slot 0 is the white piece's."""
    slots = np.full(len(until) + 1, WHITE_SLOT, np.int64)
    leaving = deque(np.argsort(until, kind="stable").tolist())
    free: list[int] = []
    capacity = 1
    for first in range(0, len(until), group):
        while until[leaving[0]] < first // group:
            free.append(int(slots[leaving.popleft()]))
        for piece in range(first, min(first + group, len(until))):
            if not free:
                free.append(capacity)
                capacity += 1
            slots[piece] = free.pop()
    return slots, capacity
