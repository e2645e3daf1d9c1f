"""TIFF images read by file tile: each tile or strip is read with one `pread`, decoded once, and copied from there."""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import ReadError
from tilestream.sources.bands import nodata_in, sample_of
from tilestream.sources.base import RGB, Pixels, SegmentGrid, SlideInfo, SourceOptions
from tilestream.sources.files import MASK_BESIDE, TIFF_STARTS, checked_file, fingerprint_file, join_fingerprints
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.local import LocalBytes
from tilestream.sources.storage.opened import open_beside
from tilestream.sources.storage.pieces import FileTileSource, can_be_read, part_seen, read_piece, refuse_small
from tilestream.sources.tiff.beside import GDALS
from tilestream.sources.tiff.chain import walk_chain
from tilestream.sources.tiff.codecs.cut_streams import refuse_cut_jpeg_2000, refuse_cut_jpeg_xr
from tilestream.sources.tiff.codecs.jpeg import scan_markers
from tilestream.sources.tiff.codecs.lzw import REVERSED, check_lzw
from tilestream.sources.tiff.coding import JPEG, JPEG_2000, JPEG_XR, TIFFFILE_ERRORS
from tilestream.sources.tiff.holes import lost_parts, pieces_in, refuse_lost
from tilestream.sources.tiff.index import TiffIndex, TiffLevel, TiffPlane, as_mask, index_tiff

LZW = 5
"""In the Compression tag."""

SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream and its size marker; length, capabilities, then Xsiz, Ysiz, XOsiz, YOsiz follow (ISO 15444-1, A.5.1)."""


class TiffSource(FileTileSource[TiffLevel]):
    """Pixels of a TIFF file whose image is a regular grid of tiles or strips.

    Reading takes no lock and moves no file position, so any number of threads may read at once. A piece of which the file holds
    no bytes is background, white, as in OpenSlide.

    Raises
    ------
    NoGridError
        The file is no TIFF, or its image is no regular grid.
    InputError
        The image is refused; the message says what to choose or to repair.
    """

    def __init__(self, address: str, options: SourceOptions, remote: ByteSource | None = None, beside: str = "") -> None:
        """`beside` is the address by which other files lie that speak of the image, where it is a copy."""
        self.opened_with, beside = options, beside or address
        if remote is None:
            checked_file(address)
            self._open(address, index_tiff(address, options, beside=beside), None)
        else:
            with remote.open_file() as file:
                walk_chain(file, remote.size, address)
                file.seek(0)  # where tifffile takes the beginning to be
                self._open(address, index_tiff(address, options, file, beside), remote)
        self.mask = _mask_of(address, self._index, remote)
        if self.mask is not None and self.mask.fetched and self.mask.info.fingerprint != self.info.fingerprint:  # of an object of its own
            self.info = replace(self.info, fingerprint=join_fingerprints([self.info.fingerprint, self.mask.info.fingerprint]))

    def _open(self, address: str, index: TiffIndex, remote: ByteSource | None) -> None:
        self._index, self._levels, self._rule = index, index.levels, index.rule
        self.pixel = index.rule.pixel
        self.icc_profile = index.icc_profile
        self._files: list[ByteSource] = [remote] if remote is not None else [LocalBytes(file) for file in index.files]
        self.fetched = remote is not None
        self._lost = [lost_parts(file, pieces_in(index.levels, number)) for number, file in enumerate(self._files)]
        self.info = _info(
            address, index, _fingerprint(address, index.files, index.beside) if remote is None else _identity(remote, index.beside)
        )

    def pictured(self) -> TiffSource:
        if not self.pixel.bands:
            return self
        picture = copy.copy(self)
        picture._rule = self._rule.as_picture  # noqa: SLF001  # its own
        picture.pixel, picture.info = RGB, replace(self.info, bands=())
        return picture

    @property
    def index(self) -> TiffIndex:
        """What is known of the file."""
        return self._index

    def close(self) -> None:
        """Close the files; may be called twice."""
        for file in self._files:
            file.close()
        if self.mask is not None:
            self.mask.close()

    def ahead(self, level: int, places: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Fetch the bytes of pieces ahead; those of the last two rows, which the next list of tiles shares, are kept behind its end."""
        if not self.fetched:
            return nullcontext()
        found = self._levels[level]
        grid = found.grid
        wanted = np.array([(row, col) for row, col in places if 0 <= row < grid.rows and 0 <= col < grid.cols], np.int64).reshape(-1, 2)
        cells = wanted @ [grid.cols, 1]
        shared = wanted[:, 0] >= wanted[:, 0].max(initial=0) - 1  # a list may end within a row of tiles
        parts = [
            (page, cells + plane * grid.rows * grid.cols) for page in found.pages for plane in self._chosen(page) or range(page.planes)
        ]
        starts = np.stack([page.offsets[index] for page, index in parts], axis=1)  # (n, parts): a piece's own lie together
        counts = np.stack([page.counts[index] for page, index in parts], axis=1)
        there = can_be_read(starts, counts, self._files[0].size)
        again = np.broadcast_to(shared[:, np.newaxis], there.shape)[there]
        return self._files[0].ahead(starts[there].tolist(), counts[there].tolist(), again.tolist())

    def ahead_bytes(self, level: int) -> int:
        del level
        return self._files[0].ahead_bytes

    def held_bytes(self, level: int, pixels: int) -> int:
        """The encoded bytes, the samples in the file's own type as decoded and as they were before (predictors, planes), and their RGB."""
        del pixels
        found = self._levels[level]
        area = found.grid.height * found.grid.width
        encoded = max(int(page.counts.max(initial=0)) for page in found.pages)
        if len(found.pages) == 1 and found.pages[0].jpeg is not None:
            own = 0 if self._rule.trivial else area * self.pixel.bytes + self._rule.mapping_bytes
            return area * 3 + own + 2 * encoded
        samples = area * sum(page.pixel_bytes for page in found.pages)
        joined = len(found.pages) > 1 or found.pages[0].planes > 1
        return encoded + samples * max(page.copies + joined for page in found.pages) + area * self.pixel.bytes + self._rule.mapping_bytes

    def has_jpeg_streams(self, level: int) -> bool:
        """Whether every file tile of a level is YCbCr or grey JPEG that needs nothing but decoding, at its stored scale."""
        found = self._levels[level]
        jpeg = found.pages[0].jpeg
        return len(found.pages) == 1 and jpeg is not None and not jpeg.rgb and found.reduce == 1 and self._rule.trivial

    def _stream(self, found: TiffLevel, row: int, col: int) -> bytes | None:
        page = found.pages[0]
        assert page.jpeg is not None, "a level without JPEG has no streams"
        data = self._bytes(page, row * found.grid.cols + col)
        if data is None:
            return None
        stream, height, width = page.jpeg.stream(data)
        refuse_small(found, row, col, height, width)
        return stream

    def read_samples(self, level: int, row: int, col: int, bands: Sequence[int]) -> NDArray[Any] | None:
        """(h, w, len(bands)) samples of one file tile as the file stores them, cropped to the image; None where it holds no bytes for it.

        Only of levels with one page. May be a buffer of the calling thread that its next call overwrites. Raises ReadError.
        """
        found = self._levels[level]
        grid, size = found.grid, found.level.size
        try:
            stored = self._stored(found, row, col, None, bands)
        except ReadError as error:
            raise self._placed(error, level, row, col) from error
        return None if stored is None else stored[: size.height - row * grid.height, : size.width - col * grid.width]

    def _segment(self, found: TiffLevel, row: int, col: int, out: Pixels | None) -> Pixels | None:
        if self.pixel.bands:
            return self._values(found, row, col)
        stored = self._stored(found, row, col, out, None)
        if stored is None or (self._rule.trivial and stored.shape[-1] == 3):
            return stored
        return self._rule.rgb(stored)

    def _values(self, found: TiffLevel, row: int, col: int) -> Pixels | None:
        """(h, w, bands) float32 of a piece; of samples that are stored separately only those of chosen bands are read."""
        chosen = self._chosen(found.pages[0])
        stored = self._stored(found, row, col, None, chosen)
        rule = self._rule if chosen is None else replace(self._rule, channels=None)
        return None if stored is None else rule.pixels(stored)

    def _chosen(self, page: TiffPlane) -> tuple[int, ...] | None:
        """The planes of a page that values are made of, where not of all."""
        return self._rule.channels if self.pixel.bands and page.planes > 1 else None

    def _stored(self, found: TiffLevel, row: int, col: int, out: Pixels | None, bands: Sequence[int] | None) -> NDArray[Any] | None:
        """(h, w, s) samples of a piece, of `bands` alone where they are given; planes of others are not read."""
        grid, seen = found.grid, part_seen(found, row, col)
        cell = row * grid.cols + col
        page = found.pages[0]
        if len(found.pages) == 1 and page.jpeg is not None:
            data = self._bytes(page, cell)
            if data is None:
                return None
            pixels = page.jpeg.decode(data, seen, out, found.reduce)
            return pixels if bands is None else pixels[..., list(bands)]
        cells, separate = grid.rows * grid.cols, bands is not None and page.planes > 1
        parts = [
            self._samples(page, cell + plane * cells, grid, seen)
            for page in found.pages
            for plane in (bands if separate and bands is not None else range(page.planes))
        ]
        if all(part is None for part in parts):
            return None
        # Of separately stored samples, those without bytes are nodata or else 0 (GDAL leaves out blocks that are all that).
        first = next(part for part in parts if part is not None)
        nodata = self._index.nodata
        each = nodata_in(nodata, bands if separate and bands is not None else range(len(parts)))
        holes = each if isinstance(each, tuple) else (each,) * len(parts)
        samples = [
            np.full_like(first, sample_of(hole, first.dtype) or 0) if part is None else part
            for part, hole in zip(parts, holes, strict=True)
        ]
        joined = samples[0] if len(samples) == 1 else np.concatenate(samples, axis=-1)
        return joined if bands is None or separate else joined[..., list(bands)]

    def _samples(self, page: TiffPlane, index: int, grid: SegmentGrid, seen: tuple[int, int]) -> NDArray[Any] | None:
        """(h, w, s) samples of the part of a piece that lies in the image, or None where the file holds no bytes for it."""
        data = self._bytes(page, index)
        if data is None:
            return None
        if page.raw is not None:
            rows: NDArray[Any] = np.frombuffer(data, page.raw).reshape(-1, grid.width, 1 if page.planes > 1 else page.samples)
            return rows if page.raw.isnative else rows.astype(page.raw.newbyteorder("="))
        try:
            _check_claim(data, page.codec, grid)
            if page.codec == LZW:
                check_lzw(data if page.fill_order == 1 else data.translate(REVERSED))
            decoded, _, _ = page.decode(data, index, jpegtables=page.tables)
        except TIFFFILE_ERRORS as error:
            raise ReadError(f"decoder: {str(error) or type(error).__name__}") from error
        samples: NDArray[Any] = np.asarray(decoded)[0, : seen[0], : seen[1]]
        if samples.shape[:2] != seen:
            raise ReadError(f"decoded to {samples.shape[0]} x {samples.shape[1]} px where {seen[0]} x {seen[1]} belong")
        return samples

    def _bytes(self, page: TiffPlane, index: int) -> bytes | None:
        """The encoded bytes of a piece, or None where there are none. Raises ReadError."""
        offset, count = page.offsets.item(index), page.counts.item(index)
        if count == 0:
            return None
        if lost := self._lost[page.file]:
            refuse_lost(lost, offset, count)
        return read_piece(self._files[page.file], offset, count)


MASK_CHOICE = SourceOptions(window=(0, 1), channels=(0,))


class MaskSource(TiffSource):
    """The transparency mask of a TIFF image, 255 where the image is; blocks of which the file holds no bytes are outside (GDAL's sparse blocks)."""

    background = 0

    def __init__(self, address: str, index: TiffIndex, remote: ByteSource | None = None) -> None:
        self._open(address, index, remote)


def _mask_of(address: str, index: TiffIndex, remote: ByteSource | None) -> MaskSource | None:
    """The mask in the file, else in the file beside it that GDAL calls `<name>.msk`; None where there is neither."""
    if index.masks:
        return MaskSource(address, as_mask(index, index.masks), remote)
    if remote is None:
        beside = f"{address}{MASK_BESIDE}"
        return mask_of_file(beside) if os.path.isfile(beside) else None  # noqa: PTH113  # addresses are strings
    stored = open_beside(address, MASK_BESIDE, TIFF_STARTS) if index.vendor in GDALS else None
    if stored is None or stored.identity == remote.identity:  # a server that gives one file whatever it is asked for
        return None
    with stored.open_file() as file:
        walk_chain(file, stored.size, stored.name)
        file.seek(0)
        return _mask_from(stored.name, index_tiff(stored.name, MASK_CHOICE, file), stored)


def mask_of_file(path: str) -> MaskSource:
    """The mask that a file of GDAL's is."""
    return _mask_from(path, index_tiff(path, MASK_CHOICE), None)


def _mask_from(address: str, index: TiffIndex, remote: ByteSource | None) -> MaskSource:
    return MaskSource(address, as_mask(index, index.levels), remote)


def _check_claim(data: bytes, codec: int, grid: SegmentGrid) -> None:
    """Refuse an image stream that is cut short, or claims more pixels than its place in the grid has, before memory is taken. Raises ReadError."""
    if codec in JPEG_2000:
        refuse_cut_jpeg_2000(data)
    elif codec in JPEG_XR:
        refuse_cut_jpeg_xr(data)
    if codec == JPEG:
        frame = scan_markers(data)
        height, width = frame.height, frame.width
    elif codec in JPEG_2000 and (at := data.find(SIZ, 0, 4096)) >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", data, at + len(SIZ) + 4)
        height, width = bottom - top, right - left
    else:
        return
    if height > grid.height or width > grid.width:
        raise ReadError(f"image of {height} x {width} px in a file tile of {grid.height} x {grid.width}")


def _info(address: str, index: TiffIndex, fingerprint: str) -> SlideInfo:
    grid = index.levels[0].grid
    size = index.levels[0].level.size
    kind = "strips" if grid.width == size.width and grid.cols == 1 and grid.height < size.height else "tiles"
    return SlideInfo(
        address=address,
        backend="tiff",
        reason=f"tiff: regular grid of {grid.height} x {grid.width} {index.compression.upper()} {kind}",
        levels=tuple(found.level for found in index.levels),
        mpp=index.resolution.mpp,
        mpp_source=index.resolution.source,
        vendor=index.vendor,
        compression=index.compression,
        fingerprint=fingerprint,
        geo=index.geo,
        properties={"tiff.tile_height": str(grid.height), "tiff.tile_width": str(grid.width), **index.properties},
        warnings=index.warnings,
        channels=tuple(band.name for band in index.bands),
        bands=index.chosen,
    )


def _identity(remote: ByteSource, beside: str) -> str:
    """Digest of an object, and of what others say of it."""
    return join_fingerprints([remote.identity, beside] if beside else [remote.identity])


def _fingerprint(address: str, files: tuple[str, ...], beside: str) -> str:
    """Digest of the samples of a file; of several files, the same whichever of them was named, and with those of a mask beside it and what others say."""
    held = sorted(files) if len(files) > 1 else [address]
    parts = [fingerprint_file(Path(file)) for file in held]
    if os.path.isfile(f"{address}{MASK_BESIDE}"):  # noqa: PTH113
        parts.append(fingerprint_file(Path(f"{address}{MASK_BESIDE}")))
    if beside:
        parts.append(beside)
    return parts[0] if len(parts) == 1 else hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
