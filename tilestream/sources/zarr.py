"""OME-Zarr images and plain Zarr arrays, local or in an object store, read by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from tilestream.config.local_files import ZARR_MARKS, refuse_special
from tilestream.config.urls.objects import is_url
from tilestream.errors import InputError, ReadError, outage
from tilestream.geometry import Region
from tilestream.sources.base import Pixels, SegmentGrid, SlideInfo, Source, SourceOptions
from tilestream.sources.channel_names import list_channels
from tilestream.sources.sample_values import Choices, SampleRule, axis_keys
from tilestream.sources.storage.chunks import ChunksAhead
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.zipped import RemoteZip
from tilestream.sources.zarr_meta import ZarrImage, doubts_of_levels, find_image, fingerprint_of, resolution_of
from tilestream.store.folder import LocalObjects
from tilestream.store.object_store import open_remote
from tilestream.store.zarr_chunks import ChunkReader, chunk_reader

MAX_CHUNK_BYTES = 256 * 1024**2
"""Largest decoded chunk that is accepted: it is what one thread holds."""

READ_BYTES = 8 * 1024**2
"""Samples that are asked of zarr at once; a region of more is read chunk by chunk."""

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs")

STORE_ERRORS = (BadZipFile, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What zarr, numcodecs and the object stores raise on damaged or missing metadata and chunks; zarr's own errors are ValueErrors."""


class ZarrSource(Source):
    """Pixels of one image in a Zarr store. Three uint8 channels are RGB, one is grey; anything else the options must choose.

    A piece is one chunk in y and x (for sharded arrays the inner chunk, which decodes alone), with all channels that are read.
    Chunks that were never written hold the array's fill value.

    Raises
    ------
    InputError
        No image there, or the options must choose axes, channels or values.
    """

    def __init__(self, address: str, options: SourceOptions, reason: str = "", zipped: ByteSource | None = None) -> None:
        self.opened_with = options
        choices = Choices(address, options)
        self._zip: ZipStore | None = None
        if zipped is not None or ("://" not in address and Path(address).is_file()):
            self._zip, node = open_zip(address, zipped)
        else:
            node = open_node(address)
        try:
            image = find_image(node, choices)
            choices.name_channels(_channel_names(image))
            self._selection = _select(image, choices)
            self._channels = tuple(sorted(set(choices.numbers or ()))) if "c" in image.axes else ()
            self._spread = self._channels[-1] + 1 - self._channels[0] if self._channels else 3
            """Channels from the first to the last that is read."""
            self._rule = _sample_rule(image, choices, self._channels)
            choices.settle()
            self._image = image
            self._grids = tuple(_grid(image, array, address) for array in image.arrays)
            self._chunks = tuple(chunk_reader(array) for array in image.arrays)
            self.fetched = is_url(address)
            self._ahead = tuple(None if reader is None else ChunksAhead(reader, address) for reader in self._chunks) if self.fetched else ()
            self.info = _info(address, reason, node, image, choices)
            if zipped is not None:
                self.info = replace(self.info, fingerprint=zipped.identity)
        except STORE_ERRORS as error:
            raise InputError(
                f"{address}: the Zarr metadata cannot be read: {str(error) or type(error).__name__}. Export it again."
            ) from error

    def close(self) -> None:
        """Close the ZIP file, if it is one; of others nothing is held open between reads. May be called twice."""
        if self._zip is not None:
            self._zip.close()

    def ahead(self, level: int, places: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Fetch chunks ahead; those of the last two rows, which the next list of tiles shares, are kept behind its end."""
        if not self._ahead or (chunks := self._ahead[level]) is None:
            return nullcontext()
        grid = self._grids[level]
        wanted = [place for place in places if 0 <= place[0] < grid.rows and 0 <= place[1] < grid.cols]
        last = max((row for row, _ in wanted), default=0) - 1
        first, y, x = self._first_chunks(level), self._image.axes.index("y"), self._image.axes.index("x")
        found: list[tuple[tuple[int, ...], bool]] = []
        for row, col in wanted:
            for chunk in first:
                chunk[y], chunk[x] = row, col
                found.append((tuple(chunk), row >= last))
        return chunks.ahead(found)

    def ahead_bytes(self, level: int) -> int:
        return 0 if not self._ahead or (chunks := self._ahead[level]) is None else chunks.ahead_bytes

    def _first_chunks(self, level: int) -> list[list[int]]:
        """The indices of the chunks that make the first piece: one, or one for each run of channels."""
        sides, spread = self._image.arrays[level].chunks, -1
        place: list[int] = []
        for axis, (name, selected, side) in enumerate(zip(self._image.axes, self._selection, sides, strict=True)):
            place.append(selected // side if isinstance(selected, int) else 0)
            spread = axis if name not in ("y", "x") and not isinstance(selected, int) else spread
        if spread < 0:
            return [place]
        channels = self._channels or range(self._image.arrays[level].shape[spread])
        numbers = sorted({channel // sides[spread] for channel in channels})
        return [[*place[:spread], number, *place[spread + 1 :]] for number in numbers]

    def segment_grid(self, level: int) -> SegmentGrid:
        """The grid of chunks in y and x."""
        return self._grids[level]

    def held_bytes(self, level: int, pixels: int) -> int:
        """The encoded chunk, the chunk with all that it holds beside the chosen channels, what is taken of it, and its RGB."""
        array, grid = self._image.arrays[level], self._grids[level]
        item = int(array.dtype.itemsize)
        chunk = int(np.prod(array.chunks, dtype=np.int64)) * item
        area = grid.height * grid.width
        taken = len(self._channels or range(3)) * area * item
        at_once = min(READ_BYTES, pixels * self._spread * item)  # by zarr: the region, its chunks, and their encoded bytes
        return max(2 * chunk + 2 * taken + area * 3, 3 * at_once + 2 * chunk if at_once else 0) + self._rule.mapping_bytes

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels:
        """(h, w, 3) uint8 of one chunk, cropped to the image; may be a buffer of the calling thread. Raises ReadError."""
        del out  # decoded chunks lie in memory of their own
        grid = self._grids[level]
        whole = Region(row * grid.height, col * grid.width, grid.height, grid.width)
        region = whole.clipped(self.info.levels[level].size)
        if region is None:
            raise IndexError(f"chunk ({row}, {col}) of a grid of {grid.rows} x {grid.cols}")
        reader = self._chunks[level]
        if reader is None:
            return self._from_array(level, region)
        with self._read_errors(level, region):
            samples = self._chunk_samples(reader, level, row, col)
            return np.ascontiguousarray(self._rule.rgb(self._to_yxs(samples)[: region.height, : region.width]))

    def _chunk_samples(self, reader: ChunkReader, level: int, row: int, col: int) -> NDArray[Any]:
        """What the selection of all axes but y and x takes of the chunks at one place, joined along the channels."""
        axes, sides = self._image.axes, self._image.arrays[level].chunks
        places: list[int] = []
        taken: list[int | slice] = []
        spread = -1
        for axis, (name, selected, side) in enumerate(zip(axes, self._selection, sides, strict=True)):
            if name in ("y", "x"):
                places.append(row if name == "y" else col)
                taken.append(slice(None))
            elif isinstance(selected, int):
                places.append(selected // side)
                taken.append(selected % side)
            else:
                spread = axis
                places.append(0)
                taken.append(slice(None))
        if spread < 0:
            return reader.chunk(places)[tuple(taken)]
        wanted = self._channels or tuple(range(self._image.arrays[level].shape[spread]))
        side, left, parts = sides[spread], sum(isinstance(each, slice) for each in taken[:spread]), []
        for number in sorted({channel // side for channel in wanted}):
            places[spread] = number
            mine = [channel % side for channel in wanted if channel // side == number]
            part = reader.chunk(places)[tuple(taken)]
            if mine == list(range(side)) and len(mine) == len(wanted):
                return part
            parts.append(part.take(mine, axis=left))  # a copy: the next chunk is decoded into the same buffer
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=left)

    def _read(self, level: int, region: Region) -> Pixels:
        array = self._image.arrays[level]
        whole = region.height * region.width * self._spread * array.dtype.itemsize <= READ_BYTES
        return self._from_array(level, region) if whole else self._read_pieces(level, region)

    def _from_array(self, level: int, region: Region) -> Pixels:
        """A region as zarr reads it: all of its chunks at once, which for those of an object store takes the time of one."""
        axes = self._image.axes
        selection = list(self._selection)
        selection[axes.index("y")] = slice(region.px_y, region.px_y + region.height)
        selection[axes.index("x")] = slice(region.px_x, region.px_x + region.width)
        with self._read_errors(level, region):
            samples = self._to_yxs(np.asarray(self._image.arrays[level][tuple(selection)]))
        if self._channels:
            samples = samples[..., [channel - self._channels[0] for channel in self._channels]]
        return np.ascontiguousarray(self._rule.rgb(samples))

    @contextmanager
    def _read_errors(self, level: int, region: Region) -> Iterator[None]:
        """Turn what stores and codecs raise into a ReadError that names the place."""
        try:
            yield
        except STORE_ERRORS as error:
            if (lost := outage(error, self.info.address)) is not None:
                raise lost from error
            words = str(error).partition("\n")[0] or type(error).__name__
            place = f"{region.height} x {region.width} px at ({region.px_y}, {region.px_x})"
            raise ReadError(f"{self.info.address}: level {level}, {place}: {words}") from error

    def _to_yxs(self, samples: NDArray[Any]) -> NDArray[Any]:
        """(h, w, s) from the selected axes in stored order; integer selections are gone already."""
        left = [axis for axis, chosen in zip(self._image.axes, self._selection, strict=True) if isinstance(chosen, slice)]
        if "c" not in left:
            return samples.transpose(left.index("y"), left.index("x"))[..., np.newaxis]
        return samples.transpose(left.index("y"), left.index("x"), left.index("c"))


def open_node(address: str) -> Any:
    """The zarr.Array or zarr.Group at a path or URL, read-only. Raises InputError."""
    try:
        if "://" not in address:
            for name in METADATA:
                refuse_special(f"{address}/{name}")
            return zarr.open(store=LocalObjects(address, read_only=True), mode="r")
        try:
            store = open_remote(address, read_only=True)
        except ModuleNotFoundError:
            return zarr.open(store=address, mode="r")  # fsspec, where it knows the scheme
        return zarr.open(store=store, mode="r")
    except ImportError as error:
        raise InputError(f"{address}: reading a URL needs the extra `s3`: pip install 'tilestream[s3]' ({error})") from error
    except STORE_ERRORS as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{address}: cannot be opened as Zarr: {words}") from error


def open_zip(address: str, remote: ByteSource | None = None) -> tuple[ZipStore, Any]:
    """The store in a ZIP file, local or `remote` (Zarr's ZipStore, `.zarr.zip`, and OME-Zarr's `.ozx`), and the array or group at its root or in its only folder.

    Raises
    ------
    InputError
        It is no ZIP file, or holds no Zarr there.
    """
    try:
        with ZipFile(address) if remote is None else ZipFile(remote.open_file()) as file:
            names = set(file.namelist())
        roots = {name.partition("/")[0] for name in names}
        inner = next(iter(roots)) if len(roots) == 1 and not roots & set(ZARR_MARKS) else ""
        if not any(f"{inner}/{mark}".lstrip("/") in names for mark in ZARR_MARKS):
            raise InputError(
                f"{address}: is a ZIP file without Zarr metadata ({', '.join(ZARR_MARKS)}) at its root. Unpack it, and name the image in it."
            )
        store = ZipStore(address, mode="r", read_only=True) if remote is None else RemoteZip(remote)
        return store, zarr.open(store=store, path=inner, mode="r")
    except STORE_ERRORS as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{address}: cannot be opened as Zarr in a ZIP file: {words}. Copy it again from its origin.") from error


def _select(image: ZarrImage, choices: Choices) -> tuple[int | slice, ...]:
    """For each axis the index to take or the slice to read."""
    keys = axis_keys(image.axes)
    shape = image.arrays[0].shape
    selection: list[int | slice] = []
    for position, axis in enumerate(image.axes):
        if axis in ("y", "x"):
            selection.append(slice(None))
        elif keys[position] == "channels":
            chosen = choices.numbers
            selection.append(slice(min(chosen), max(chosen) + 1) if chosen is not None else slice(None))
        else:
            selection.append(choices.index(axis, shape[position], keys[position]))
    return tuple(selection)


def _sample_rule(image: ZarrImage, choices: Choices, read: tuple[int, ...]) -> SampleRule:
    """How the selected samples become RGB; channels are counted among those that are `read`."""
    array, window = image.arrays[0], choices.options.window
    choices.values(np.dtype(array.dtype), array.dtype.itemsize * 8 if array.dtype != np.bool_ else 1)
    length = array.shape[image.axes.index("c")] if "c" in image.axes else 1
    if choices.numbers is not None:
        chosen = choices.channels(length, "axis c")
        return SampleRule(tuple(map(read.index, chosen)), window) if read else SampleRule(None, window)
    if length not in (1, 3) or (length == 3 and array.dtype != np.uint8):
        choices.channels(length, "axis c")
    return SampleRule(None, window)


def _channel_names(image: ZarrImage) -> tuple[str, ...]:
    """A name for each channel, "" where the labels are not as many as the channels."""
    length = image.arrays[0].shape[image.axes.index("c")] if "c" in image.axes else 1
    return image.channel_names if len(image.channel_names) == length else ("",) * length


def _grid(image: ZarrImage, array: Any, address: str) -> SegmentGrid:
    """The chunk grid in y and x. Raises InputError where one chunk is too large to hold."""
    y, x = image.axes.index("y"), image.axes.index("x")
    decoded = int(np.prod(array.chunks, dtype=np.int64)) * array.dtype.itemsize
    if decoded > MAX_CHUNK_BYTES:
        limit = MAX_CHUNK_BYTES // 2**20
        raise InputError(
            f"{address}: a chunk of {array.chunks} {array.dtype} is {decoded / 2**20:.0f} MiB, the limit is {limit} MiB. Rechunk the array."
        )
    height, width = min(array.chunks[y], array.shape[y]), min(array.chunks[x], array.shape[x])
    return SegmentGrid(height, width, -(-array.shape[y] // height), -(-array.shape[x] // width))


def _info(address: str, reason: str, node: Any, image: ZarrImage, choices: Choices) -> SlideInfo:
    array = image.arrays[0]
    stated = resolution_of(image, choices)
    kind = f"OME-Zarr {image.version}" if image.version else f"Zarr v{array.metadata.zarr_format} array"
    codecs = ", ".join(type(codec).__name__ for codec in array.compressors)
    return SlideInfo(
        address=address,
        backend="zarr",
        reason=reason or f"zarr: {kind} in chunks of {' x '.join(map(str, array.chunks))}",
        levels=image.levels,
        mpp=stated.mpp,
        mpp_source=stated.source,
        vendor="ome-zarr" if image.version else "zarr",
        compression=codecs.lower().removesuffix("codec"),
        fingerprint=fingerprint_of(node, image, address),
        properties={
            "zarr.axes": "".join(a if len(a) == 1 else f"({a})" for a in image.axes),
            "zarr.shape": str(array.shape),
            **image.facts,
            **({"channels": listed} if (listed := list_channels(choices.names)) else {}),
        },
        warnings=(*image.warnings, *doubts_of_levels(image), *stated.warnings),
        channels=choices.names,
    )
