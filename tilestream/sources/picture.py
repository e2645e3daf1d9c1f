"""Plain pictures: PNG, JPEG and JPEG 2000 files. Each is one piece, which is decoded once and kept while the source is open."""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from tilestream.errors import InputError, ReadError
from tilestream.geometry import Level, Region, Size
from tilestream.sources.base import LARGEST_PROFILE, Pixels, SegmentGrid, SlideInfo, Source, SourceOptions
from tilestream.sources.files import checked_file, fingerprint_file, join_fingerprints
from tilestream.sources.resolution import INCH, PLACEHOLDER_MPP, UNKNOWN, Resolution, resolution_from_config, resolution_from_file
from tilestream.sources.sample_values import Alpha, Choices, SampleRule
from tilestream.sources.tiff.beside import read_beside
from tilestream.sources.tiff.codecs.jpeg import decode_stream, scan_markers

LARGEST_BYTES = 256 * 1024**2
"""Bytes of a decoded picture that are held; a TIFF's strip may have as many."""

HEADER_BYTES = 4 * 1024**2
"""Bytes in which the size of a picture must be told; a JPEG may have profiles before it."""

PNG, JPEG, JP2, J2K = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf"})
"""Names under which a picture is one. Others hold pictures beside the slide (a .mrxs is its overview in JPEG)."""

PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Samples by colour type (PNG, section 11.2.1); a palette's are those of its colours."""

PICTURE_CHANNELS = {1: ("grey",), 2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
"""What the samples of a pixel are, by their number."""

DECODER_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, OSError)
"""What imagecodecs raises on damaged files."""


@dataclass(frozen=True)
class PictureHeader:
    """What a picture says of itself before it is decoded."""

    kind: str
    """png, jpeg or jpeg_2000."""
    size: Size
    samples: int
    bits: int
    alpha: Alpha = "none"


def is_picture(address: str) -> bool:
    """Whether a file is called a picture and begins as one."""
    suffix = address[address.rfind(".") :].lower() if "." in address else ""
    if suffix not in SUFFIXES:
        return False
    return bool(_kind(address))


def misnamed_words(address: str) -> str:
    """What a file is that begins as a picture and is called something else, and the way out, as a sentence; "" of any other."""
    kind = _kind(address)
    return f"{address}: begins as {kind[0]}. If it is the picture that is meant, call it {kind[1]}." if kind else ""


def _kind(address: str) -> tuple[str, str] | None:
    """Name and suffix of the kind of picture that a file begins as."""
    with open(address, "rb") as file:  # noqa: PTH123  # addresses are strings
        head = file.read(12)
    kinds = {PNG: ("PNG", ".png"), JPEG: ("JPEG", ".jpg"), JP2: ("JPEG 2000", ".jp2"), J2K: ("JPEG 2000", ".j2k")}
    return next((kind for start, kind in kinds.items() if head.startswith(start)), None)


class PictureSource(Source):
    """Pixels of a PNG, JPEG or JPEG 2000 file.

    Memory bound: the encoded file while it is decoded, and the decoded picture, of `LARGEST_BYTES` at most.

    Raises
    ------
    InputError
        The picture is too large to be one piece, or is refused as an image of that kind in a TIFF would be.
    """

    def __init__(self, address: str, options: SourceOptions) -> None:
        path = checked_file(address)
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        try:
            header = read_picture_header(head)
        except (ReadError, ValueError, struct.error) as error:
            raise InputError(f"{address}: is no picture that can be read: {error}. Export it again.") from error
        _refuse_large(address, header)
        self._address, self._header, self._lock = address, header, threading.Lock()
        self._pixels: Pixels | None = None
        self._encoded_bytes = path.stat().st_size
        choices = Choices(address, options)
        self._rule = _sample_rule(header, choices)
        choices.settle()
        facts = _PilFacts.of(address)
        self.icc_profile = facts.profile
        beside = read_beside(address)
        geo = beside.place()
        own = facts.resolution if geo is None or not geo.crs else geo.resolution()
        stated = resolution_from_config(options.mpp) if options.mpp is not None else own
        warnings = (f"its EXIF Orientation is {facts.orientation}; pixels are read in stored order.",) if facts.orientation != 1 else ()
        self.info = SlideInfo(
            address=address, backend="picture", reason=f"picture: {header.kind.replace('_', ' ').upper()} in one piece", levels=(Level(header.size, 1.0),),
            mpp=stated.mpp, mpp_source=stated.source, vendor="picture", compression=header.kind, fingerprint=join_fingerprints([fingerprint_file(path), beside.digest]) if beside.files else fingerprint_file(path), geo=geo,
            properties={"icc_profile": f"{len(facts.profile)} bytes" if facts.profile is not None else "none", **beside.facts(), **({} if geo is None else geo.facts())},
            warnings=warnings + stated.warnings + beside.warnings + beside.unread_nodata,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the decoded picture."""
        self._pixels = None

    def segment_grid(self, level: int) -> SegmentGrid:
        """The picture as one piece."""
        del level
        return SegmentGrid(self._header.size.height, self._header.size.width, 1, 1)

    def held_bytes(self, level: int, pixels: int) -> int:
        """The encoded file, its samples as they are decoded and made into colours, and the picture."""
        del level, pixels
        header = self._header
        area = header.size.height * header.size.width
        samples = area * max(3, header.samples + 1) * (2 if header.bits > 8 else 1)
        return self._encoded_bytes + 3 * samples + 2 * area * 3 + self._rule.mapping_bytes

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels:
        """(height, width, 3) uint8 of the picture. Raises ReadError."""
        del level, out
        if row or col:
            raise IndexError(f"piece ({row}, {col}) of a picture, which is one piece")
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decode()
            return self._pixels

    def _read(self, level: int, region: Region) -> Pixels:
        whole = self.read_segment(level, 0, 0)
        return whole[region.px_y : region.px_y + region.height, region.px_x : region.px_x + region.width].copy()

    def _decode(self) -> Pixels:
        header = self._header
        try:
            with open(self._address, "rb") as file:  # noqa: PTH123
                data = file.read()
            if header.kind == "jpeg":
                samples: Any = decode_stream(data, np.empty((header.size.height, header.size.width, 3), np.uint8))
            else:
                samples = imagecodecs.png_decode(data) if header.kind == "png" else imagecodecs.jpeg2k_decode(data)
        except DECODER_ERRORS as error:
            raise ReadError(f"{self._address}: decoder: {str(error) or type(error).__name__}") from error
        samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
        if samples.shape[:2] != (header.size.height, header.size.width):
            raise ReadError(f"{self._address}: decoded to {samples.shape[0]} x {samples.shape[1]} px, not as its header says")
        if header.kind == "png" and samples.shape[-1] == header.samples + 1:  # a transparent colour, which became alpha
            chosen = self._rule.channels or tuple(range(header.samples))
            rule = SampleRule.of_chosen(chosen, self._rule.window, "straight", header.samples)
        else:
            rule = self._rule
        pixels = np.ascontiguousarray(rule.rgb(samples))
        pixels.flags.writeable = False
        return pixels


def read_picture_header(head: bytes) -> PictureHeader:
    """Kind, size and samples of a picture from its first bytes. Raises ReadError, ValueError or struct.error."""
    if head.startswith(PNG):
        width, height, bits, colour = struct.unpack_from(">IIBB", head, 16)
        if colour not in PNG_SAMPLES:
            raise ValueError(f"PNG of colour type {colour}")
        return PictureHeader("png", Size(height, width), PNG_SAMPLES[colour], max(8, bits), "straight" if colour in (4, 6) else "none")
    if head.startswith(JPEG):
        frame = scan_markers(head)
        if frame.components not in (1, 3):
            raise ValueError(f"JPEG with {frame.components} colours; grey and RGB are read")
        if frame.precision != 8:
            raise ValueError(f"JPEG of {frame.precision} bits; 8 are read")
        return PictureHeader("jpeg", Size(frame.height, frame.width), 3, 8)
    at = head.find(J2K)
    if at < 0:
        raise ValueError("JPEG 2000 without a codestream")
    right, bottom, left, top = struct.unpack_from(">4I", head, at + 8)
    samples, depth = struct.unpack_from(">HB", head, at + 40)
    kind = _jp2_alpha(head[:at], samples)
    return PictureHeader("jpeg_2000", Size(bottom - top, right - left), samples, (depth & 0x7F) + 1, kind)


def _jp2_alpha(boxes: bytes, samples: int) -> Alpha:
    """Meaning of the last component by the channel definition box (ISO 15444-1, I.5.3.6)."""
    at = boxes.find(b"cdef")
    if at < 0:
        return "none"
    (count,) = struct.unpack_from(">H", boxes, at + 4)
    kinds = {number: kind for number, kind, _ in struct.iter_unpack(">HHH", boxes[at + 6 : at + 6 + 6 * count])}
    meanings: dict[int, Alpha] = {1: "straight", 2: "premultiplied"}
    return meanings.get(kinds.get(samples - 1, 0), "none")


def _refuse_large(address: str, header: PictureHeader) -> None:
    height, width = header.size.height, header.size.width
    decoded = height * width * max(3, header.samples) * (2 if header.bits > 8 else 1)
    if decoded > LARGEST_BYTES:
        raise InputError(
            f"{address}: a {header.kind} picture of {height} x {width} px is one piece of {decoded / 2**20:.0f} MiB when decoded, the limit is "
            f"{LARGEST_BYTES // 2**20} MiB. Make a pyramid of it: vips tiffsave {address} slide.tif --tile --pyramid --compression jpeg --bigtiff"
        )


def _sample_rule(header: PictureHeader, choices: Choices) -> SampleRule:
    window = choices.options.window
    choices.name_channels(PICTURE_CHANNELS.get(header.samples, ("",) * header.samples))
    choices.values(np.dtype(np.uint8 if header.bits <= 8 else np.uint16), header.bits)
    if choices.options.channels is not None:
        return SampleRule.of_chosen(choices.channels(header.samples, "axis S"), window, header.alpha, header.samples - 1)
    if header.alpha != "none" and header.samples in (2, 4):
        return SampleRule(None, window, header.alpha)
    if header.samples not in (1, 3):
        choices.channels(header.samples, "axis S (samples of a pixel)")
    return SampleRule(None, window)


@dataclass(frozen=True)
class _PilFacts:
    """What Pillow reads of a picture's metadata."""

    resolution: Resolution
    profile: bytes | None
    orientation: int

    @classmethod
    def of(cls, address: str) -> _PilFacts:
        """From the file; nothing where Pillow does not read it."""
        try:
            with Image.open(address) as opened:
                profile, dpi = opened.info.get("icc_profile"), opened.info.get("dpi")
                orientation = int(opened.getexif().get(274, 1) or 1)
        except (OSError, ValueError, SyntaxError, LookupError, TypeError):
            return cls(UNKNOWN, None, 1)
        good = isinstance(profile, bytes) and 0 < len(profile) <= LARGEST_PROFILE
        stated = UNKNOWN
        if dpi is not None and min(dpi) > 1:
            stated = resolution_from_file(
                address, INCH / float(dpi[0]), INCH / float(dpi[1]), "the picture's pixel density", limit=PLACEHOLDER_MPP
            )
        return cls(stated, profile if good else None, orientation)
