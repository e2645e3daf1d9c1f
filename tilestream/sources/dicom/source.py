"""DICOM whole-slide images read by frame: each is read with one `pread`, decoded once, and copied from there, as TIFF tiles are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.buffers import ThreadBuffers
from tilestream.errors import ReadError
from tilestream.sources.base import Pixels, SlideInfo, SourceOptions
from tilestream.sources.dicom.coding import JPEG, NAMES, Decode, decode_frame, decoder_of, jpeg_decoder, sample_rule
from tilestream.sources.dicom.frames import FramePlaces, find_frames, join_fragments
from tilestream.sources.dicom.instance import FULL, SPARSE, Instance
from tilestream.sources.dicom.jfif import WARNING, is_jfif
from tilestream.sources.dicom.listing import SeriesFiles, files_beside
from tilestream.sources.dicom.series import ABSENT, DicomLevel, DicomSlide, FrameTable, read_slide
from tilestream.sources.files import checked_file, fingerprint_file, join_fingerprints
from tilestream.sources.resolution import UNKNOWN, Resolution, resolution_from_config, resolution_from_file
from tilestream.sources.sample_values import Choices
from tilestream.sources.storage.contract import ByteSource
from tilestream.sources.storage.pieces import FileTileSource, can_be_read, part_seen, read_piece, refuse_small
from tilestream.sources.tiff.codecs.jpeg import JpegDecoder, reduced_levels

LOOKED_AT = 64
"""Frames that are looked at for one that is a JPEG stream."""


class _File:
    """One file of the slide: its bytes, where its frames lie, and what decodes them. Safe to share between threads."""

    def __init__(self, found: Instance, stored: ByteSource, buffers: ThreadBuffers) -> None:
        self.instance, self.bytes = found, stored
        self.jpeg: JpegDecoder | None = None
        self.decode: Decode | None = None
        self.mistold = False
        self.places: FramePlaces = find_frames(found, stored)
        if found.syntax in JPEG:
            self.mistold = found.photometric == "RGB" and self._is_jfif()
            self.jpeg = jpeg_decoder(found, buffers, mistold=self.mistold)
        else:
            self.decode = decoder_of(found)

    def frame(self, number: int) -> bytes:
        """The encoded bytes of a frame. Raises ReadError."""
        offset, count = self.places.offsets.item(number), self.places.counts.item(number)
        data = read_piece(self.bytes, offset, count)
        return join_fragments(data) if self.places.encapsulated else data

    def _is_jfif(self) -> bool:
        """Whether frames say that they are YCbCr: the first one that is a JPEG stream."""
        for number in range(min(LOOKED_AT, self.instance.frames)):
            try:
                return is_jfif(self.frame(number))
            except ReadError:
                continue
        return False


class DicomSource(FileTileSource[DicomLevel]):
    """Pixels of a DICOM whole-slide image, whose frames are a regular grid.

    Reading takes no lock and moves no file position, so any number of threads may read at once. A tile without a frame (TILED_SPARSE)
    is background, white, as in OpenSlide.

    Raises
    ------
    NoGridError
        Its elements or its coding cannot be read here; OpenSlide may.
    InputError
        The image is refused; the message says what to choose or to repair.
    """

    def __init__(self, address: str, options: SourceOptions, files: SeriesFiles | None = None) -> None:
        self.opened_with = options
        if files is None:
            checked_file(address)
            files = files_beside(address)
        try:
            self._open(address, files, Choices(address, options))
        except BaseException:
            files.close()
            raise

    def _open(self, address: str, files: SeriesFiles, choices: Choices) -> None:
        slide = read_slide(address, files, choices)
        self._rule = sample_rule(slide.instances[0], choices, slide.paths)
        choices.settle()
        buffers = ThreadBuffers()
        self._files = [_File(found, stored, buffers) for found, stored in zip(slide.instances, slide.files, strict=True)]
        self._levels = slide.levels
        if choices.options.reduced:
            self._levels = reduced_levels(slide.levels, self._can_reduce)
        self.icc_profile = next((found.icc_profile for found in slide.instances if found.icc_profile is not None), None)
        self.fetched = any(file.bytes.identity for file in self._files)
        warnings = ((WARNING,) if any(file.mistold for file in self._files) else ()) + files.warnings
        self.info = _info(address, slide, self._levels, choices.options, warnings)

    def close(self) -> None:
        """Close the files; may be called twice."""
        for file in self._files:
            file.bytes.close()

    @contextmanager
    def _ahead(self, level: int, places: Iterable[tuple[int, int]]) -> Iterator[None]:
        found = self._levels[level]
        cells = np.array(
            [row * found.grid.cols + col for row, col in places if 0 <= row < found.grid.rows and 0 <= col < found.grid.cols], np.int64
        )
        shared = cells // found.grid.cols >= cells.max(initial=0) // found.grid.cols - 1  # a list may end within a row of tiles
        with ExitStack() as stack:
            for table in found.tables:
                for number in np.unique(table.files[cells]).tolist():
                    if number == ABSENT:
                        continue
                    mine, file = table.files[cells] == number, self._files[number]
                    frames = table.frames[cells[mine]]
                    starts, counts = file.places.offsets[frames], file.places.counts[frames]
                    there = can_be_read(starts, counts, file.bytes.size)
                    stack.enter_context(file.bytes.ahead(starts[there].tolist(), counts[there].tolist(), shared[mine][there].tolist()))
            yield

    def ahead(self, level: int, places: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Fetch the bytes of frames ahead; those of the last two rows, which the next list of tiles shares, are kept behind its end."""
        return self._ahead(level, places) if self.fetched else nullcontext()

    def ahead_bytes(self, level: int) -> int:
        return sum(file.bytes.ahead_bytes for file in self._files_of(self._levels[level]))

    def held_bytes(self, level: int, pixels: int) -> int:
        """The encoded bytes, twice where fragments are joined, the samples as decoded and as they were before, and their RGB."""
        del pixels
        found = self._levels[level]
        area, files = found.grid.height * found.grid.width, self._files_of(found)
        encoded = 2 * max((int(file.places.counts.max(initial=0)) for file in files), default=0)
        if len(found.tables) == 1 and all(file.jpeg is not None for file in files):
            return area * 3 * (1 if self._rule.trivial else 2) + encoded
        samples = max((file.instance.frame_bytes for file in files), default=0)
        return encoded + samples * (2 + len(found.tables)) + area * 6 + self._rule.mapping_bytes

    def has_jpeg_streams(self, level: int) -> bool:
        """Whether every frame of a level is YCbCr or grey JPEG that needs nothing but decoding, at its stored scale."""
        found = self._levels[level]
        plain = all(file.jpeg is not None and not file.jpeg.rgb for file in self._files_of(found))
        return plain and len(found.tables) == 1 and found.reduce == 1 and self._rule.trivial

    def _stream(self, found: DicomLevel, row: int, col: int) -> bytes | None:
        place = self._place(found.tables[0], row * found.grid.cols + col)
        if place is None:
            return None
        file, number = place
        assert file.jpeg is not None, "a level without JPEG has no streams"
        stream, height, width = file.jpeg.stream(file.frame(number))
        refuse_small(found, row, col, height, width)
        return stream

    def _files_of(self, found: DicomLevel) -> list[_File]:
        """The files that frames of a level lie in."""
        numbers = {number for table in found.tables for number in np.unique(table.files).tolist()} - {ABSENT}
        return [self._files[number] for number in sorted(numbers)]

    def _can_reduce(self, found: DicomLevel) -> bool:
        return len(found.tables) == 1 and all(file.jpeg is not None for file in self._files_of(found))

    def _place(self, table: FrameTable, cell: int) -> tuple[_File, int] | None:
        """The file and the number in it of the frame on a tile, or None where there is none."""
        number = table.files.item(cell)
        return None if number == ABSENT else (self._files[number], table.frames.item(cell))

    def _segment(self, found: DicomLevel, row: int, col: int, out: Pixels | None) -> Pixels | None:
        places = [self._place(table, row * found.grid.cols + col) for table in found.tables]
        if len(places) == 1:
            if places[0] is None:
                return None
            file, number = places[0]
            if file.jpeg is not None:
                pixels = file.jpeg.decode(file.frame(number), part_seen(found, row, col), out, found.reduce)
                return pixels if self._rule.trivial else self._rule.rgb(pixels[..., : file.instance.samples])
        parts = [None if place is None else self._samples(*place) for place in places]
        if all(part is None for part in parts):
            return None
        # Of several optical paths, one that has no frame here has seen nothing.
        first = next(part for part in parts if part is not None)
        samples = [np.zeros_like(first) if part is None else part for part in parts]
        return self._rule.rgb(samples[0] if len(samples) == 1 else np.concatenate(samples, axis=-1))

    def _samples(self, file: _File, number: int) -> NDArray[Any]:
        """(h, w, s) samples of a whole frame, which the next call leaves alone."""
        data, found = file.frame(number), file.instance
        if file.jpeg is not None:
            return file.jpeg.decode(data, (found.tile.height, found.tile.width))[..., : found.samples].copy()
        assert file.decode is not None, "a file has one decoder"
        return decode_frame(data, found, file.decode)


def _info(address: str, slide: DicomSlide, levels: tuple[DicomLevel, ...], options: SourceOptions, warnings: tuple[str, ...]) -> SlideInfo:
    first = slide.instances[0]
    grid, codec = slide.levels[0].grid, NAMES.get(first.syntax, "")
    stated = _resolution(address, first, options)
    profile = next((found.icc_profile for found in slide.instances if found.icc_profile is not None), None)
    facts = {
        "dicom.syntax": first.syntax,
        "dicom.photometric": first.photometric,
        "dicom.organization": FULL if first.places is None else SPARSE,
        "dicom.files": ", ".join(found.file_name for found in slide.instances),
        "icc_profile": "none" if profile is None else f"{len(profile)} bytes",
    }
    if slide.others:
        facts["dicom.other_files"] = ", ".join(slide.others)
    return SlideInfo(
        address=address,
        backend="dicom",
        reason=f"dicom: regular grid of {grid.height} x {grid.width} {codec.upper()} frames",
        levels=tuple(found.level for found in levels),
        mpp=stated.mpp,
        mpp_source=stated.source,
        vendor="dicom",
        compression=codec,
        fingerprint=_fingerprint(slide.files),
        properties=facts,
        warnings=warnings + stated.warnings,
    )


def _resolution(address: str, first: Instance, options: SourceOptions) -> Resolution:
    if options.mpp is not None:
        return resolution_from_config(options.mpp)
    if first.spacing is None:
        return UNKNOWN
    y, x = first.spacing
    return resolution_from_file(address, x * 1000, y * 1000, first.spacing_source)


def _fingerprint(files: Iterable[ByteSource]) -> str:
    return join_fingerprints(file.identity or fingerprint_file(Path(file.name)) for file in files)
