"""JPEG segments of TIFF files to pixels, as libjpeg-turbo decodes them by default (ISLOW DCT, smooth chroma upsampling).

The TIFF tag PhotometricInterpretation, not the segment, says whether the colours are RGB or YCbCr (TIFF Technical Note 2, and what
libtiff and OpenSlide do). libjpeg guesses from JFIF and Adobe markers (libjpeg.txt, "Special color spaces"), so those are taken out
and an Adobe marker with the right transform is put in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from tilestream.buffers import ThreadBuffers
from tilestream.errors import ReadError
from tilestream.geometry import Level, Size
from tilestream.sources.base import Pixels
from tilestream.sources.storage.pieces import StoredLevel

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
SOS, APP0, APP14 = 0xDA, 0xE0, 0xEE
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length: TEM, RST0 to RST7, SOI."""


def adobe_marker(transform: int) -> bytes:
    """An APP14 segment that states the colour transform: 0 for RGB, 1 for YCbCr (Adobe Technical Note 5116)."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


REDUCTIONS = (2, 4)
"""Parts of the scale, as denominators, that libjpeg's inverse DCT decodes to directly."""

KNOWN_HEADERS = 4
"""Headers kept of a page: one for whole pieces, some for cropped ones; a page whose tables change with each piece stays cheap."""

TAILS = frozenset({EOI, *(bytes([0xFF, code]) for code in range(0xD0, 0xD8))})
"""Markers that end a restart interval."""


@dataclass(frozen=True)
class JpegFrame:
    """What a JPEG stream says before its first scan."""

    height: int
    width: int
    components: int
    precision: int
    colour_markers: tuple[tuple[int, int], ...]
    """Byte ranges of JFIF and Adobe segments."""
    end: int
    """Byte at which the scan, or the end of the image, begins."""
    scanned: bool
    """Whether it is the scan that begins there."""


def scan_markers(data: bytes) -> JpegFrame:
    """The frame and the colour markers of a stream, up to its first scan or its end. Raises ReadError."""
    if data[:2] != SOI:
        raise ReadError(f"not a JPEG: starts with {data[:4].hex(' ')}, not with ff d8")
    at, frame, marked = 2, (0, 0, 0, 0), []
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ReadError(f"corrupt JPEG: byte {data[at]:02x} at {at} where a marker belongs")
        code = data[at + 1]
        if code == 0xFF:  # fill byte
            at += 1
            continue
        if code in BARE:
            at += 2
            continue
        if code in (SOS, 0xD9):
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if code in SOF and at + 10 <= len(data):
            frame = (int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"), data[at + 9], data[at + 4])
        elif code in (APP0, APP14):
            marked.append((at, at + 2 + length))
        at += 2 + length
    return JpegFrame(*frame, tuple(marked), min(at, len(data)), data[at : at + 2] == bytes((0xFF, SOS)))


def _without(data: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    for start, end in reversed(ranges):
        data = data[:start] + data[end:]
    return data


@dataclass(frozen=True)
class _Header:
    """The bytes before the scan that one segment began with; most segments of a page begin alike."""

    raw: bytes
    """As stored."""
    clean: bytes
    """With the page's tables and colour marker in place of the segment's own colour markers."""
    height: int
    width: int


@dataclass(frozen=True)
class JpegDecoder:
    """Decodes the segments of one TIFF page."""

    prefix: bytes
    """What stands before each segment's own bytes: start of image, colour marker, tables; or the page's whole header."""
    bare: bool
    """Whether segments are scan data only (Hamamatsu restart intervals) and not streams of their own."""
    height: int
    """Rows of a full segment."""
    width: int
    """Columns of a full segment."""
    buffers: ThreadBuffers
    rgb: bool = False
    """Whether the stored colours are RGB."""
    headers: list[_Header] = field(default_factory=list)
    """Headers seen so far, at most `KNOWN_HEADERS`: finding one again is a comparison, parsing it is a tenth of decoding."""

    @classmethod
    def from_tables(cls, tables: bytes | None, *, rgb: bool, height: int, width: int, buffers: ThreadBuffers) -> JpegDecoder:
        """A decoder for segments that share `tables` (the JPEGTables tag) and whose colours are RGB, or else YCbCr or grey."""
        body = b""
        if tables:
            try:
                body = _without(tables, scan_markers(tables).colour_markers)[2:].removesuffix(EOI)
            except ReadError as error:
                raise ReadError(f"JPEGTables tag: {error}") from error
        return cls(SOI + adobe_marker(0 if rgb else 1) + body, bare=False, height=height, width=width, buffers=buffers, rgb=rgb)

    @classmethod
    def from_header(cls, header: bytes, *, height: int, width: int, buffers: ThreadBuffers) -> JpegDecoder:
        """A decoder for segments that are scan data behind one common header."""
        return cls(header, bare=True, height=height, width=width, buffers=buffers)

    def decode(self, segment: bytes, seen: tuple[int, int], out: Pixels | None = None, reduce: int = 1) -> Pixels:
        """(h, w, 3) uint8 of one segment: in `out` where it has that shape, else in the calling thread's buffer.

        `seen` is the height and width of the part inside the image, which the segment must cover, after division by `reduce`
        (1, 2, 4 or 8), at which scale the segment is decoded. Raises ReadError.
        """
        data, height, width = self.stream(segment)
        height, width = -(-height // reduce), -(-width // reduce)
        if seen[0] > height or seen[1] > width:
            raise ReadError(f"JPEG of {height * reduce} x {width * reduce} px, too small for its part of the image")
        if out is None or out.shape != (height, width, 3):
            out = self.buffers.get((height, width, 3))
        return decode_stream(data, out, reduce)

    def stream(self, segment: bytes) -> tuple[bytes, int, int]:
        """A complete stream for one segment, and its height and width. Raises ReadError."""
        if self.bare:
            return self.prefix + (segment[:-2] if segment[-2:] in TAILS else segment) + EOI, self.height, self.width
        for header in self.headers:
            if segment.startswith(header.raw):
                return header.clean + segment[len(header.raw) :], header.height, header.width
        frame = scan_markers(segment)
        if not frame.scanned:  # what is cut off within its header begins as all others do
            raise ReadError(f"JPEG without a scan: its {len(segment)} bytes end in its header")
        if frame.height > self.height or frame.width > self.width:
            raise ReadError(f"JPEG of {frame.height} x {frame.width} px in a file tile of {self.height} x {self.width}")
        raw = segment[: frame.end]
        clean = self.prefix + _without(raw, frame.colour_markers)[2:]
        if len(self.headers) < KNOWN_HEADERS:
            self.headers.append(_Header(raw, clean, frame.height, frame.width))
        return clean + segment[frame.end :], frame.height, frame.width


def decode_stream(data: bytes, out: Pixels, reduce: int = 1) -> Pixels:
    """`out`, (h, w, 3) uint8, filled from a complete grey or colour stream that has that size at 1 / `reduce` of its scale. Raises ReadError."""
    try:
        if simplejpeg is None:
            return _decode_with_imagecodecs(data, out, reduce)
        if reduce == 1:
            simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out)
        else:
            least = {"min_height": out.shape[0], "min_width": out.shape[1], "min_factor": float(reduce)}
            _check_size(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out, **least), out)
    except (ValueError, RuntimeError) as error:
        raise ReadError(f"JPEG decoder: {error}") from error
    return out


def _check_size(pixels: Pixels, out: Pixels) -> None:
    if pixels.shape[:2] != out.shape[:2]:
        raise ReadError(f"JPEG of {pixels.shape[0]} x {pixels.shape[1]} px where {out.shape[0]} x {out.shape[1]} belong")


def _decode_with_imagecodecs(data: bytes, out: Pixels, reduce: int) -> Pixels:
    import imagecodecs

    if reduce > 1:
        raise ReadError("decoding at reduced scale needs simplejpeg: pip install simplejpeg")
    pixels = imagecodecs.jpeg8_decode(data)
    _check_size(pixels, out)
    out[:] = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
    return out


class _StoredLevel(StoredLevel, Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


L = TypeVar("L", bound=_StoredLevel)


def reduced_levels(levels: tuple[L, ...], can_reduce: Callable[[L], bool]) -> tuple[L, ...]:
    """The levels, and between them those that JPEG decoding at 1/2 and 1/4 of the scale makes of a level and the file lacks.

    Levels are dataclasses with a field `reduce`; `can_reduce` says whether the pieces of one are whole JPEG streams.
    """
    made = list(levels)
    for found in reversed(levels):  # from the coarsest that serves: fewer bytes to read
        for factor in REDUCTIONS:
            downsample = found.level.downsample * factor
            divides = found.grid.height % factor == 0 and found.grid.width % factor == 0
            known = any(abs(other.level.downsample / downsample - 1) <= 0.01 for other in made)
            if not divides or known or not can_reduce(found):
                continue
            size = Size(-(-found.level.size.height // factor), -(-found.level.size.width // factor))
            grid = replace(found.grid, height=found.grid.height // factor, width=found.grid.width // factor)
            made.append(replace(found, level=Level(size, downsample), grid=grid, reduce=factor))
    return tuple(sorted(made, key=lambda each: each.level.downsample))
