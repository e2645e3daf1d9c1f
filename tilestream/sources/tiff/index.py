"""Where the pieces of a TIFF image lie in the file and how each is decoded: all that is kept of tifffile's index.

The file is opened once, indexed, and closed; the decoders that are kept are closures over plain numbers and safe to share.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilestream.buffers import ThreadBuffers
from tilestream.config.bands.band import Band
from tilestream.config.urls.objects import is_url
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Level, Size, downsample_from_sizes
from tilestream.sources.bands import Nodata, nodata_words
from tilestream.sources.base import LARGEST_PROFILE, SegmentGrid, SourceOptions
from tilestream.sources.channel_names import list_channels
from tilestream.sources.containers import refuse_olympus
from tilestream.sources.files import NoGridError, NotTiffError
from tilestream.sources.geo import GeoReference, place_warnings, read_nodata
from tilestream.sources.resolution import Resolution
from tilestream.sources.sample_values import Choices, SampleRule, axis_keys
from tilestream.sources.storage.pieces import MAX_PIECE_BYTES
from tilestream.sources.tiff.beside import GDALS, GEOTIFF, NOTHING, read_beside
from tilestream.sources.tiff.channel_names import read_bands
from tilestream.sources.tiff.codecs.jpeg import JpegDecoder, reduced_levels
from tilestream.sources.tiff.coding import JPEG, PALETTE, RGB, TIFFFILE_ERRORS, bits_of, check_coding, sample_rule
from tilestream.sources.tiff.facts import page_facts
from tilestream.sources.tiff.multi_file import (
    check_files,
    name_files,
    own_page,
    refuse_companion,
    refuse_several_files,
    refuse_special_files,
)
from tilestream.sources.tiff.overviews import overviews_beside
from tilestream.sources.tiff.pages import mask_levels, pick_levels, pick_series, vendor_of
from tilestream.sources.tiff.stated_mpp import read_resolution, states_resolution
from tilestream.sources.tiff.strips import cut_strips, rows_at_once, sample_type

LISTS = (324, 325, 273, 279)
"""Tags with a number for each piece: TileOffsets, TileByteCounts, StripOffsets, StripByteCounts."""


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
    pixel_bytes: int
    """Bytes of all samples of one pixel, as decoded."""
    copies: int
    """Copies of the samples that decoding makes: two where a predictor is undone."""
    file: int = 0
    """Which of the index' files holds the pieces."""
    samples: int = 1
    """Samples of a pixel."""
    raw: np.dtype[Any] | None = None
    """Type of the samples, where pieces are rows of uncompressed ones."""


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
    files: tuple[str, ...]
    """The files that hold pieces; a plane says which by its number here."""
    masks: tuple[TiffLevel, ...]
    """Transparency masks, finest first; samples that are 0 are no part of the image."""
    geo: GeoReference | None
    kind: np.dtype[Any] | None = None
    """Type of the samples; None where tifffile knows none."""
    bands: tuple[Band, ...] = ()
    """What is known of the channels."""
    chosen: tuple[Band, ...] = ()
    """Of those whose values are read; empty where pixels are colours."""
    nodata: Nodata = None
    """What stands for nothing in all samples of a pixel as they are stored, or in each."""
    beside: str = ""
    """A digest of what files beside it say of place and bands; "" where they say nothing."""
    may_be_raster: bool = False
    """Whether it lies on a map, or may, as far as its own tags say: of others nothing beside an object is asked for, but for a mask."""


def index_tiff(address: str, options: SourceOptions, remote: BinaryIO | None = None, beside: str | None = None) -> TiffIndex:
    """The index of the image in a TIFF file, by the choices of `options`; `remote` is the file where it is no local one, `beside` the address by which other files lie that speak of it.

    Raises
    ------
    NoGridError
        tifffile cannot read the file, or maps it to no regular grid of pieces.
    InputError
        The image is refused: sizes that cannot be, axes or values that the options must choose.
    """
    try:
        with tifffile.TiffFile(address if remote is None else remote, name=None if remote is None else posixpath.basename(address)) as tif:
            if remote is not None:
                refuse_several_files(tif, address)
            return _index(tif, Choices(address, options), beside=beside)
    except TIFFFILE_ERRORS as error:
        raise NotTiffError(f"{address}: cannot be read as TIFF: {str(error) or type(error).__name__}") from error


def _index(tif: tifffile.TiffFile, choices: Choices, *, beside: str | None) -> TiffIndex:
    address = choices.address
    refuse_special_files(tif, address)
    refuse_companion(tif, address)
    number, series = pick_series(tif, choices)
    page = series.keyframe
    refuse_olympus(page, address)
    check_coding(page, address)
    vendor = vendor_of(tif, series)
    may_be_raster = vendor == GEOTIFF or (vendor in GDALS and not states_resolution(tif, number, series, address))
    look = beside is not None and (may_be_raster if is_url(beside) else vendor in GDALS)
    told = read_beside(beside, page) if beside is not None and look else NOTHING
    choices.know_bands(told.known(read_bands(tif, number, series)))
    leading, channels = _choose_pages(series, choices)
    nodata = told.nodata if told.says_nodata else read_nodata(page)
    rule = sample_rule(page, channels, choices, nodata)
    if choices.problems:
        choices.problems.extend(name_files(tif, address))
    choices.settle()
    check_files(tif, series, leading, address)
    files: list[str] = []
    levels = tuple(_level(level, found, leading, files, address) for level, found in pick_levels(tif, series, leading))
    unused: tuple[str, ...] = ()
    if look and beside is not None and not is_url(beside) and len(levels) == len(series.pages) == 1:
        overviews, unused = overviews_beside(beside, page, lambda level, found, path: _level(level, found, (0,), files, path))
        levels, files = levels + overviews, files if overviews else files[:1]
    masks = tuple(_level(level, found, (0,), files, address) for level, found in mask_levels(series))
    if choices.options.reduced:
        levels = reduced_levels(levels, _can_reduce)
    geo = told.place(page)
    stated = read_resolution(tif, number, series, address, choices.options, geo)
    turned = f"the Orientation tag is {page.tags.valueof(274)}; pixels are read in stored order."
    warnings = (turned,) if int(page.tags.valueof(274, default=1)) != 1 else ()
    facts = page_facts(page, series) | (geo.facts() if geo is not None else {}) | told.facts()
    if listed := list_channels(choices.names):
        facts["channels"] = listed
    if nodata is not None:
        facts["geo.nodata"] = nodata_words(nodata)
    if len(files) > 1:
        facts["tiff.files"] = ", ".join(os.path.basename(file) for file in files)  # noqa: PTH119  # addresses are strings
    profile = _icc_profile(page)
    facts["icc_profile"] = f"{len(profile)} bytes" if profile is not None else "none"
    return TiffIndex(
        levels,
        rule,
        stated,
        vendor,
        tifffile.COMPRESSION(page.compression).name.lower(),
        facts,
        warnings + stated.warnings + told.warnings + unused + place_warnings(page, known=bool(told.transform or told.world)),
        profile,
        tuple(files),
        masks,
        geo,
        None if page.dtype is None else np.dtype(page.dtype).newbyteorder("="),
        choices.bands,
        () if rule.values is None else tuple(choices.bands[number] for number in choices.numbers or ()),
        nodata,
        told.digest,
        may_be_raster,
    )


def as_mask(index: TiffIndex, levels: tuple[TiffLevel, ...]) -> TiffIndex:
    """An index that reads a mask: samples that are 0 become 0, all others 255."""
    l0_size = levels[0].level.size
    scaled = tuple(
        replace(found, level=replace(found.level, downsample=downsample_from_sizes(l0_size, found.level.size) if k else 1.0))
        for k, found in enumerate(levels)
    )
    return replace(index, levels=scaled, rule=SampleRule(None, (0, 1)), masks=(), icc_profile=None)


def _icc_profile(page: Any) -> bytes | None:
    """The InterColorProfile tag (34675); empty where it claims more bytes than a profile has."""
    tag = page.tags.get(34675)
    if tag is None:
        return None
    value = tag.value if int(tag.count) <= LARGEST_PROFILE else b""
    return value if isinstance(value, bytes) else b""


def _can_reduce(found: TiffLevel) -> bool:
    jpeg = found.pages[0].jpeg
    return len(found.pages) == 1 and jpeg is not None and not jpeg.bare


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


def _level(level: Level, series: Any, leading: tuple[int, ...], files: list[str], address: str) -> TiffLevel:
    """Grid and planes of a level; files that hold pieces are added to `files`."""
    page = series.keyframe
    rows = rows_at_once(page)
    grid, buffers = _grid(page, address, rows), ThreadBuffers()
    listed = [series.pages[k] for k in leading]
    frames = [own_page(frame, page, address) for frame in listed]
    planes = tuple(_plane(frame, rows, grid, buffers, (files, address)) for frame in frames)
    for frame in (*listed, *frames):
        _forget_lists(frame)
    return TiffLevel(level, grid, planes)


def _grid(page: Any, address: str, rows: int | None) -> SegmentGrid:
    """The grid of tiles or strips of a page; a strip is a piece as wide as the image, of `rows` where strips are cut. Raises InputError."""
    size = Size(int(page.imagelength), int(page.imagewidth))
    tiled = bool(page.is_tiled)
    height, width = (int(page.tilelength), int(page.tilewidth)) if tiled else (rows or int(page.rowsperstrip), size.width)
    if min(height, width) < 1 or int(page.imagedepth) != 1 or (tiled and int(page.tiledepth) != 1):
        raise InputError(f"{address}: file tiles of {height} x {width} px cannot be. The file is damaged; export it again.")
    height = height if tiled else min(height, size.height)
    samples = int(page.samplesperpixel) if int(page.planarconfig) == 1 else 1
    decoded = height * width * samples * max(1, bits_of(page) // 8)
    if decoded > MAX_PIECE_BYTES:
        problem = f"{address}: a file {'tile' if tiled else 'strip'} of {height} x {width} px decodes to {decoded / 2**20:.0f} MiB"
        raise (InputError if tiled else NoGridError)(
            f"{problem}, the limit is {MAX_PIECE_BYTES // 2**20} MiB. Convert the file to smaller tiles"
        )
    return SegmentGrid(height, width, -(-size.height // height), -(-size.width // width))


def _plane(frame: Any, rows: int | None, grid: SegmentGrid, buffers: ThreadBuffers, place: tuple[list[str], str]) -> TiffPlane:
    files, address = place
    page, holder = frame.keyframe, str(frame.parent.filehandle.path)
    if holder not in files:
        files.append(holder)
    planes = int(page.samplesperpixel) if int(page.planarconfig) == 2 else 1
    offsets, counts = (np.asarray(values, np.int64) for values in (frame.dataoffsets, frame.databytecounts))
    if rows is not None:
        offsets, counts = cut_strips(page, offsets, rows)
    wanted = planes * grid.rows * grid.cols
    if min(len(offsets), len(counts)) < wanted:  # other readers would take minutes to fail on every piece that is missing
        raise InputError(
            f"{address}: the file lists {min(len(offsets), len(counts))} pieces where {grid.rows} x {grid.cols} x {planes} belong. "
            "Its index or its size is damaged; export it again."
        )
    if len(offsets) != wanted or len(counts) != wanted:
        raise NoGridError(f"{address}: the file lists {len(offsets)} pieces where {grid.rows} x {grid.cols} x {planes} belong")
    jpeg = _jpeg_decoder(page, grid, buffers, address)
    pixel_bytes = int(page.samplesperpixel) * max(1, bits_of(page) // 8)
    raw = None if rows is None else sample_type(page)
    return TiffPlane(
        offsets,
        counts,
        planes,
        page.decode,
        page.jpegtables,
        jpeg,
        int(page.compression),
        int(page.fillorder),
        pixel_bytes,
        1 if int(page.predictor) == 1 else 2,
        files.index(holder),
        int(page.samplesperpixel),
        raw,
    )


def _forget_lists(frame: Any) -> None:
    """Let go of tifffile's lists of where pieces lie, 80 bytes a piece: its objects hold one another and stay until the collector comes by."""
    frame.dataoffsets = frame.databytecounts = ()
    for code in LISTS if hasattr(frame, "tags") else ():
        if (tag := frame.tags.get(code)) is not None:
            tag.value = ()


def _jpeg_decoder(page: Any, grid: SegmentGrid, buffers: ThreadBuffers, address: str) -> JpegDecoder | None:
    """Our own decoder where it applies: 8-bit grey or colour with interleaved samples."""
    samples = int(page.samplesperpixel)
    plain = int(page.compression) == JPEG and bits_of(page) == 8 and int(page.photometric) != PALETTE
    if not plain or samples not in (1, 3) or (samples == 3 and int(page.planarconfig) == 2):
        return None
    header = getattr(page, "jpegheader", None)
    if header:
        return JpegDecoder.from_header(header, height=grid.height, width=grid.width, buffers=buffers)
    rgb = int(page.photometric) == RGB
    try:
        return JpegDecoder.from_tables(page.jpegtables, rgb=rgb, height=grid.height, width=grid.width, buffers=buffers)
    except ReadError as error:
        raise InputError(f"{address}: {error}. The file is damaged; export it again.") from error
