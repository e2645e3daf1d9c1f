"""Where the pieces of a TIFF image lie in the file and how each is decoded: all that is kept of tifffile's index.

The file is opened once, indexed, and closed; the decoders that are kept are closures over plain numbers and safe to share.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilestream.buffers import ThreadBuffers
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Level, Size
from tilestream.sources.base import LARGEST_PROFILE, SegmentGrid, SourceOptions
from tilestream.sources.files import NoGridError
from tilestream.sources.resolution import Resolution
from tilestream.sources.sample_values import Alpha, Choices, SampleRule, axis_keys
from tilestream.sources.tiff.jpeg import JpegDecoder
from tilestream.sources.tiff.pages import pick_levels, pick_series, read_resolution, vendor_of

MAX_PIECE_BYTES = 256 * 1024**2
"""Largest decoded tile or strip that is believed."""

TIFFFILE_ERRORS = (
    *(tifffile.TiffFileError, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, RuntimeError, OSError, EOFError, MemoryError, SyntaxError),  # SyntaxError: ElementTree's ParseError
)
"""What tifffile raises on damaged files: its parsers trust what they read and fail in whatever way the numbers lead to."""

JPEG, JPEG_2000_YCBCR = 7, 33003
JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6
REDUCTIONS = (2, 4)
"""Parts of the scale, as denominators, that libjpeg's inverse DCT decodes to directly."""
ALPHA: dict[tuple[int, ...], Alpha] = {(1,): "premultiplied", (2,): "straight"}
"""Meaning of the ExtraSamples tag where there is one extra sample (TIFF 6.0 section 18)."""


@dataclass(frozen=True)
class TiffPlane:
    """One page of one level."""

    offsets: NDArray[np.int64]
    """(planes * rows * cols,) byte offsets of the pieces."""
    counts: NDArray[np.int64]
    """Byte counts in the same order; 0 where there is nothing."""
    planes: int
    """Separately stored samples (PlanarConfiguration 2), 1 where samples are interleaved."""
    decode: Callable[..., tuple[Any, Any, Any]]
    """tifffile's decoder: (bytes, index, jpegtables=) to ((1, h, w, s) samples, place, shape)."""
    tables: bytes | None
    """The JPEGTables tag."""
    jpeg: JpegDecoder | None
    """Our own decoder, for 8-bit grey and colour JPEG with interleaved samples."""
    codec: int
    """The Compression tag."""
    fill_order: int
    """The FillOrder tag: 2 where the bits of each byte are stored in the other order."""


@dataclass(frozen=True)
class TiffLevel:
    """One level: its grid and, for each chosen channel page (else one), where the pieces are."""

    level: Level
    grid: SegmentGrid
    """In pixels of the level, after division by `reduce`."""
    pages: tuple[TiffPlane, ...]
    reduce: int = 1
    """The part of the stored scale, as a denominator, at which pieces are decoded."""


@dataclass(frozen=True)
class TiffIndex:
    """All that a source needs after the file's own index is closed."""

    levels: tuple[TiffLevel, ...]
    rule: SampleRule
    resolution: Resolution
    vendor: str
    compression: str
    properties: dict[str, str]
    warnings: tuple[str, ...]
    icc_profile: bytes | None


def index_tiff(address: str, options: SourceOptions) -> TiffIndex:
    """The index of the image in a TIFF file, by the choices of `options`.

    Raises
    ------
    NoGridError
        tifffile cannot read the file, or maps it to no regular grid of pieces.
    InputError
        The image is refused: sizes that cannot be, axes or values that the options must choose.
    """
    try:
        with tifffile.TiffFile(address) as tif:
            return _index(tif, Choices(address, options))
    except TIFFFILE_ERRORS as error:
        raise NoGridError(f"{address}: cannot be read as TIFF: {str(error) or type(error).__name__}") from error


def _index(tif: tifffile.TiffFile, choices: Choices) -> TiffIndex:
    address = choices.address
    number, series = pick_series(tif, choices)
    page = series.keyframe
    _check_coding(page, address)
    leading, channels = _choose_pages(series, choices)
    rule, warnings = _sample_rule(page, channels, choices)
    choices.settle()
    buffers = ThreadBuffers()
    levels = tuple(
        TiffLevel(level, grid := _grid(found.keyframe, address), tuple(_plane(tif, found, k, grid, buffers, address) for k in leading))
        for level, found in pick_levels(tif, series)
    )
    if choices.options.reduced:
        levels = _with_reduced(levels)
    stated = read_resolution(tif, number, series, address, choices.options)
    if int(page.tags.valueof(274, default=1)) != 1:
        warnings = (*warnings, f"the Orientation tag is {page.tags.valueof(274)}; pixels are read in stored order.")
    compression = tifffile.COMPRESSION(page.compression).name.lower()
    facts = _facts(page, series)
    profile = _icc_profile(page)
    facts["icc_profile"] = f"{len(profile)} bytes" if profile is not None else "none"
    return TiffIndex(levels, rule, stated, vendor_of(tif, series), compression, facts, warnings + stated.warnings, profile)


def _icc_profile(page: Any) -> bytes | None:
    """The InterColorProfile tag (34675); empty where it claims more bytes than a profile has."""
    tag = page.tags.get(34675)
    if tag is None:
        return None
    value = tag.value if int(tag.count) <= LARGEST_PROFILE else b""
    return value if isinstance(value, bytes) else b""


def _with_reduced(levels: tuple[TiffLevel, ...]) -> tuple[TiffLevel, ...]:
    """The levels, and between them those that JPEG decoding at 1/2 and 1/4 of the scale makes of a level and the file lacks."""
    made = list(levels)
    for found in reversed(levels):  # from the coarsest that serves: fewer bytes to read
        page = found.pages[0]
        for factor in REDUCTIONS:
            downsample = found.level.downsample * factor
            divides = found.grid.height % factor == 0 and found.grid.width % factor == 0
            known = any(abs(other.level.downsample / downsample - 1) <= 0.01 for other in made)
            if len(found.pages) > 1 or page.jpeg is None or page.jpeg.bare or not divides or known:
                continue
            size = Size(-(-found.level.size.height // factor), -(-found.level.size.width // factor))
            grid = replace(found.grid, height=found.grid.height // factor, width=found.grid.width // factor)
            made.append(TiffLevel(Level(size, downsample), grid, found.pages, factor))
    return tuple(sorted(made, key=lambda each: each.level.downsample))


def _check_coding(page: Any, address: str) -> None:
    """Refuse colours and codecs that would decode to something other than grey or RGB samples."""
    codec, photometric = int(page.compression), int(page.photometric)
    if page.compression != 1 and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise NoGridError(f"{address}: TIFF compression {codec} is not supported")
    if codec == JPEG_2000_YCBCR:
        raise NoGridError(f"{address}: JPEG 2000 in YCbCr (compression {codec}) is converted to RGB by OpenSlide only")
    if photometric == YCBCR and codec not in (6, JPEG):
        raise NoGridError(f"{address}: YCbCr colours without JPEG compression (compression {codec})")
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR):
        name = getattr(page.photometric, "name", str(photometric))
        raise InputError(f"{address}: colours are {name}; grey, RGB and YCbCr are read. Convert the file to RGB first.")


def _choose_pages(series: Any, choices: Choices) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Numbers of the pages to read in the series' page list, and the channels that they are, None where channels are samples."""
    axes, shape = str(series.axes), tuple(series.shape)
    lead = [(axis, length) for axis, length in zip(axes, shape, strict=True) if axis not in "YXS" and length > 1]
    keys = axis_keys([axis for axis, _ in lead])
    picks: list[tuple[int, ...]] = []
    channels = None
    for position, (axis, length) in enumerate(lead):
        if keys[position] == "channels" and length > 1:
            picks.append(channels := choices.channels(length, f"axis {axis}"))
        else:
            picks.append((choices.index(axis, length, keys[position]),))
    lengths = [length for _, length in lead]
    if len(series.pages) != int(np.prod(lengths, dtype=np.int64)):
        raise NoGridError(f"{choices.address}: {len(series.pages)} pages for axes {axes} of {shape}: pixels are stored across pages")
    grid = np.arange(len(series.pages)).reshape(lengths)
    return tuple(int(k) for k in grid[np.ix_(*picks)].ravel()), channels


def _sample_rule(page: Any, channels: tuple[int, ...] | None, choices: Choices) -> tuple[SampleRule, tuple[str, ...]]:
    """How this page's samples become RGB, and warnings; what cannot be known is noted in `choices`."""
    samples, window = int(page.samplesperpixel), choices.options.window
    invert = int(page.photometric) == WHITE_IS_ZERO
    choices.values(np.dtype(page.dtype) if page.dtype is not None else np.dtype("V"), _bits(page))
    if channels is not None:
        if samples > 1:
            choices.refuse(f"each channel page has {samples} samples a pixel", "", "")
        return SampleRule(None, window, invert=invert), ()
    if choices.options.channels is not None:
        return SampleRule(choices.channels(samples, "axis S"), window, invert=invert), ()
    colours = 3 if int(page.photometric) in (RGB, YCBCR) else 1
    extra = tuple(int(code) for code in page.extrasamples)
    if samples == colours + 1 and extra in ALPHA:
        return SampleRule(None, window, ALPHA[extra], invert), ()
    if samples == 2:
        return SampleRule(None, window, "straight", invert), ("the file does not say what its second sample is; it is taken as alpha.",)
    if samples != colours:
        choices.channels(samples, "axis S (samples of a pixel, the fourth not said to be alpha)" if samples == 4 else "axis S")
    return SampleRule(None, window, invert=invert), ()


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _grid(page: Any, address: str) -> SegmentGrid:
    """The grid of tiles or strips of a page; a strip is a piece as wide as the image. Raises InputError."""
    size = Size(int(page.imagelength), int(page.imagewidth))
    tiled = bool(page.is_tiled)
    height, width = (int(page.tilelength), int(page.tilewidth)) if tiled else (int(page.rowsperstrip), size.width)
    if min(height, width) < 1 or int(page.imagedepth) != 1 or (tiled and int(page.tiledepth) != 1):
        raise InputError(f"{address}: file tiles of {height} x {width} px cannot be. The file is damaged; export it again.")
    height = height if tiled else min(height, size.height)
    samples = int(page.samplesperpixel) if int(page.planarconfig) == 1 else 1
    decoded = height * width * samples * max(1, _bits(page) // 8)
    if decoded > MAX_PIECE_BYTES:
        problem = f"{address}: a file {'tile' if tiled else 'strip'} of {height} x {width} px decodes to {decoded / 2**20:.0f} MiB"
        raise (InputError if tiled else NoGridError)(
            f"{problem}, the limit is {MAX_PIECE_BYTES // 2**20} MiB. Convert the file to smaller tiles"
        )
    return SegmentGrid(height, width, -(-size.height // height), -(-size.width // width))


def _plane(tif: tifffile.TiffFile, series: Any, number: int, grid: SegmentGrid, buffers: ThreadBuffers, address: str) -> TiffPlane:
    frame = series.pages[number]
    if frame is None or frame.parent is not tif:
        raise NoGridError(f"{address}: page {number} of the image is missing from this file")
    page = frame.keyframe
    planes = int(page.samplesperpixel) if int(page.planarconfig) == 2 else 1
    offsets, counts = (np.asarray(values, np.int64) for values in (frame.dataoffsets, frame.databytecounts))
    wanted = planes * grid.rows * grid.cols
    if min(len(offsets), len(counts)) < wanted:  # other readers would take minutes to fail on every piece that is missing
        raise InputError(
            f"{address}: the file lists {min(len(offsets), len(counts))} pieces where {grid.rows} x {grid.cols} x {planes} belong. "
            "Its index or its size is damaged; export it again."
        )
    if len(offsets) != wanted or len(counts) != wanted:
        raise NoGridError(f"{address}: the file lists {len(offsets)} pieces where {grid.rows} x {grid.cols} x {planes} belong")
    jpeg = _jpeg_decoder(page, grid, buffers, address)
    return TiffPlane(offsets, counts, planes, page.decode, page.jpegtables, jpeg, int(page.compression), int(page.fillorder))


def _jpeg_decoder(page: Any, grid: SegmentGrid, buffers: ThreadBuffers, address: str) -> JpegDecoder | None:
    """Our own decoder where it applies: 8-bit grey or colour with interleaved samples."""
    samples = int(page.samplesperpixel)
    if int(page.compression) != JPEG or _bits(page) != 8 or samples not in (1, 3) or (samples == 3 and int(page.planarconfig) == 2):
        return None
    header = getattr(page, "jpegheader", None)
    if header:
        return JpegDecoder.from_header(header, height=grid.height, width=grid.width, buffers=buffers)
    rgb = int(page.photometric) == RGB
    try:
        return JpegDecoder.from_tables(page.jpegtables, rgb=rgb, height=grid.height, width=grid.width, buffers=buffers)
    except ReadError as error:
        raise InputError(f"{address}: {error}. The file is damaged; export it again.") from error


def _facts(page: Any, series: Any) -> dict[str, str]:
    """Free facts for `inspect`."""
    facts = {
        "tiff.series": str(series.kind),
        "tiff.axes": str(series.axes),
        "tiff.photometric": getattr(page.photometric, "name", str(page.photometric)).lower(),
    }
    for name in ("software", "datetime", "description"):
        text = str(getattr(page, name) or "").strip()
        if text:
            facts[f"tiff.{name}"] = text[:1000]
    if series.kind == "svs":
        facts.update(_aperio_facts(page.description))
    return facts


def _aperio_facts(description: str) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in description.split("|")[1:] if "=" in part)
    return {f"aperio.{key.strip()}": value.strip() for key, value in pairs}
