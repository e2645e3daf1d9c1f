"""The contract of a source: what an image is (`SlideInfo`) and how its pixels are read (`Source`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tilestream.config.bands.band import Band
from tilestream.errors import ReadError, outage, without_credentials
from tilestream.geometry import Level, Region, Size

if TYPE_CHECKING:
    import dask.array

    from tilestream.sources.geo import GeoReference

WHITE = 255
"""Value of pixels outside an image or under alpha 0."""

LARGEST_PROFILE = 16 * 1024**2
"""Bytes of a colour profile that is believed; those of scanners have up to 4 MiB."""

Pixels = NDArray[Any]
"""(height, width, 3) uint8 RGB, alpha already composited on white; of a source of values (height, width, bands) float32, NaN where there is nothing."""


@dataclass(frozen=True)
class PixelKind:
    """What a pixel holds: red, green and blue in uint8, or the values of bands in float32."""

    bands: int = 0
    """Bands whose values it holds; 0 where it is a colour."""

    @property
    def channels(self) -> int:
        """Numbers of a pixel."""
        return self.bands or 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of each of them."""
        return np.dtype(np.float32 if self.bands else np.uint8)

    @property
    def bytes(self) -> int:
        """Of a pixel."""
        return self.channels * self.dtype.itemsize

    @property
    def fill(self) -> float:
        """What each number is where there is nothing: white, or NaN."""
        return float("nan") if self.bands else WHITE

    def filled(self, height: int, width: int) -> Pixels:
        """(height, width, channels) in which nothing is."""
        return np.full((height, width, self.channels), self.fill, self.dtype)


RGB = PixelKind()
"""Colours."""


@dataclass(frozen=True)
class SourceOptions:
    """The choices that a file leaves open, from the `source` section of the config; None means "not chosen"."""

    backend: str = "auto"
    """auto | tiff | openslide | zarr."""
    z: int | None = None
    t: int | None = None
    channels: tuple[int | str, ...] | None = None
    """One (grey) or three (RGB) channels, by number or by the file's name for it; any number of them with `normalise`."""
    window: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    """Values that become 0 and 255, for samples of more than 8 bits: of all channels, or of each."""
    bands: str | tuple[Band, ...] | None = None
    """What is known of a raster's bands: a preset, `file`, or as the config says; `window` is in their values then, not in samples."""
    normalise: str | tuple[tuple[float, float], ...] | None = None
    """Mean and standard deviation of each band: a preset, `bands`, `none`, or pairs of numbers. Pixels are then values in float32, not colours; None for colours."""
    scene: int | None = None
    mpp: float | None = None
    """Resolution to take in place of the file's, µm/px."""
    reduced: bool = False
    """Whether levels of 1/2 and 1/4 that the decoder can make of a level (JPEG) are offered beside those in the file."""
    icc: bool = False
    """Whether colours are converted to sRGB by the file's profile."""
    stage: str | None = None
    """Folder to which objects are copied before they are read; None where they are read by ranges."""
    stage_limit: int = 200 * 2**30
    """Bytes of all copies there, at most."""


@dataclass(frozen=True)
class ImageAddress:
    """Which image, and what the config says of it: all that another process needs to open the same one."""

    address: str = field(repr=False)  # tasks stand in logs, and an address may hold credentials
    options: SourceOptions
    fingerprint: str
    """Of the image that tiles were planned on; empty where any will do."""


@dataclass(frozen=True)
class SegmentGrid:
    """The regular grid of independently decodable pieces of a level: TIFF tiles or strips, Zarr chunks."""

    height: int
    """Rows of pixels in a piece."""
    width: int
    """Columns of pixels in a piece."""
    rows: int
    cols: int


@dataclass(frozen=True)
class SlideInfo:
    """What a source says of an image without reading its pixels."""

    address: str
    """Path or URL as opened."""
    backend: str
    """Which backend reads it: tiff, dicom, mosaic, zarr, picture or openslide."""
    reason: str
    """Why this backend was chosen, in words for `inspect`."""
    levels: tuple[Level, ...]
    """Finest first; levels[0].downsample is 1."""
    mpp: float | None
    """µm per level-0 pixel; None when the file does not say."""
    mpp_source: str
    """Where mpp comes from: the file, the config, or "" when unknown."""
    vendor: str = ""
    """Format family, e.g. aperio, hamamatsu, generic-tiff, ome-zarr."""
    compression: str = ""
    """Codec of level 0, e.g. jpeg, deflate; "" when the backend does not tell."""
    fingerprint: str = ""
    """Digest that changes when the file's bytes do (sampled, not the whole file)."""
    properties: dict[str, str] = field(default_factory=dict)
    """Free facts for `inspect`: icc profile, bounds, axes, scenes."""
    warnings: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    """Names of the channels that can be chosen, "" for each without one; empty where there is no choice."""
    geo: GeoReference | None = None
    """Where on a map the image lies; None where the file does not say."""
    bands: tuple[Band, ...] = ()
    """What is known of the bands whose values pixels hold, in their order; empty where pixels are colours."""
    parts: tuple[Region, ...] = ()
    """Level-0 px outside of which there is nothing, of an image that is put together; empty where all of it may hold something."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("SlideInfo needs at least one level")

    @property
    def size(self) -> Size:
        """Size in level-0 pixels."""
        return self.levels[0].size


class Source(ABC):
    """Pixels of one image. Safe to share between threads; opened anew in each process, never pickled.

    A backend implements `_read`; a backend whose level is a regular grid of independent pieces also implements
    `segment_grid` and `read_segment`, and is then read piece by piece, each decoded once.
    """

    info: SlideInfo

    pixel: PixelKind = RGB
    """What its pixels hold."""

    mask: Source | None = None
    """A source of the same image in which what is black (0) is no part of it; None where the file has no mask."""

    fetched: bool = False
    """Whether pieces come over a network, so that it pays to say `ahead` which will be read."""

    background: int = WHITE
    """What is read where a piece of the image holds nothing."""

    opened_with: SourceOptions = SourceOptions()
    """The choices it was opened with."""

    icc_profile: bytes | None = None
    """The file's colour profile; None where it has none, or the backend knows none."""

    def __repr__(self) -> str:
        info = self.info
        size, levels = info.levels[0].size, len(info.levels)
        scale = "no resolution" if info.mpp is None else f"{info.mpp:g} µm/px"
        told = f"{size.height} px high, {size.width} wide, {levels} level{'s' if levels != 1 else ''}, {scale}, read by {info.backend}"
        return f"<tilestream {without_credentials(info.address)}: {told}>"

    def pictured(self) -> Source:
        """The same image in colours, for people and for finding tissue: this one, or one that shares its files and is not closed."""
        return self

    @property
    def opened_as(self) -> ImageAddress:
        """What opens the same image in another process."""
        return ImageAddress(self.info.address, self.opened_with, self.info.fingerprint)

    @abstractmethod
    def _read(self, level: int, region: Region) -> Pixels:
        """(height, width, 3) uint8 pixels of a region that lies inside the level. Raises ReadError."""

    @abstractmethod
    def close(self) -> None:
        """Release files and handles; reading afterwards is an error."""

    def read_region(self, level: int, region: Region) -> Pixels:
        """(height, width, 3) uint8 pixels of `region` in the pixels of `level`; white outside the image. Of a source of values, NaN there.

        Raises
        ------
        ReadError
            A part inside the image cannot be decoded.
        OutageError
            Its storage does not answer.
        """
        inside = region.clipped(self.info.levels[level].size)
        if inside == region:
            return self._read(level, region)
        out = self.pixel.filled(region.height, region.width)
        if inside is not None:
            y, x = inside.px_y - region.px_y, inside.px_x - region.px_x
            try:
                out[y : y + inside.height, x : x + inside.width] = self._read(level, inside)
            except OSError as error:
                place = f"level {level}, {inside.height} x {inside.width} px at ({inside.px_y}, {inside.px_x})"
                raise outage(error, self.info.address) or ReadError(f"{self.info.address}: {place}: {error.strerror or error}") from error
        return out

    def read(self, region: Region | tuple[int, int, int, int], level: int = 0) -> Pixels:
        """(height, width, 3) uint8 pixels of a region, given as y, x, height, width in the pixels of `level`: `read_region` for people."""
        return self.read_region(level, region if isinstance(region, Region) else Region(*region))

    def segment_grid(self, level: int) -> SegmentGrid | None:
        """The grid of independently decodable pieces of `level`, or None where there is none."""
        del level
        return None

    def ahead(self, level: int, places: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """While its block runs, pieces of `level` at (row, column) are fetched ahead of `read_segment`, in this order, where they come over a network."""
        del level, places
        return nullcontext()

    def ahead_bytes(self, level: int) -> int:
        """Most bytes that one `ahead` holds."""
        del level
        return 0

    def _read_pieces(self, level: int, region: Region) -> Pixels:
        """`_read` for a level of pieces, one after another; `background` where there is nothing in a piece."""
        grid = self.segment_grid(level)
        assert grid is not None, "a level without pieces is read otherwise"
        fill = self.pixel.fill if self.pixel.bands else self.background
        out = np.full((region.height, region.width, self.pixel.channels), fill, self.pixel.dtype)
        y1, x1 = region.px_y + region.height, region.px_x + region.width
        rows, cols = range(region.px_y // grid.height, -(-y1 // grid.height)), range(region.px_x // grid.width, -(-x1 // grid.width))
        with self.ahead(level, product(rows, cols)):
            for row, col in product(rows, cols):
                piece = self.read_segment(level, row, col)
                if piece is None:
                    continue
                top, left = row * grid.height, col * grid.width
                a, b = max(region.px_y, top), min(y1, top + grid.height)
                c, d = max(region.px_x, left), min(x1, left + grid.width)
                out[a - region.px_y : b - region.px_y, c - region.px_x : d - region.px_x] = piece[a - top : b - top, c - left : d - left]
        return out

    def held_bytes(self, level: int, pixels: int) -> int:
        """Most bytes that one thread holds while it reads a piece of `level`, or a region of so many pixels, beside the region itself.

        Pixels are 0 where it is pieces alone that are read; all that is made of what the file stores on the way is counted.
        """
        grid = self.segment_grid(level)
        return 2 * grid.height * grid.width * 3 if grid else pixels * 10  # 32-bit words, their RGB, and the region that it is put into

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels | None:
        """(h, w, 3) uint8 pixels of one piece; edge pieces may be cropped or full; None where it is pure background.

        The array may be a buffer of the calling thread that the next call on that thread overwrites, or `out`: contiguous memory
        of a whole piece's shape, which a backend that decodes without a copy may fill instead. Raises ReadError, after which
        `out` holds anything; OutageError where the file's storage does not answer.
        """
        raise AssertionError("read_segment needs a segment_grid")

    def has_jpeg_streams(self, level: int) -> bool:
        """Whether every piece of a level is YCbCr or grey JPEG that needs nothing but decoding, at its stored scale.

        JPEG that stores RGB is left out: nvJPEG ignores the marker that says so.
        """
        del level
        return False

    def encoded_segment(self, level: int, row: int, col: int) -> bytes | None:
        """The complete JPEG stream of one piece, for a decoder elsewhere; None where it is pure background.

        The stream is no larger than a piece and covers its part of the image. Only where `has_jpeg_streams`. Raises ReadError.
        """
        raise AssertionError("encoded_segment needs JPEG streams")

    def to_dask(self, level: int) -> dask.array.Array:
        """(height, width, 3) uint8 `dask.array` of a level, or of values in float32, in chunks that follow the file's own."""
        import dask.array as da

        size = self.info.levels[level].size
        grid = self.segment_grid(level)
        chunk = (_chunk_side(grid.height), _chunk_side(grid.width)) if grid else (2048, 2048)

        def read_block(block_info: dict[object, dict[str, list[tuple[int, int]]]]) -> Pixels:
            (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
            return self.read_region(level, Region(y0, x0, y1 - y0, x1 - x0))

        kind, shape = self.pixel, (size.height, size.width, self.pixel.channels)
        chunks = da.core.normalize_chunks((*chunk, kind.channels), shape, dtype=kind.dtype)
        pixels: da.Array = da.map_blocks(read_block, chunks=chunks, dtype=kind.dtype, meta=np.empty((0, 0, 0), kind.dtype))
        return pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunk_side(segment: int) -> int:
    """The multiple of a file tile's side that is nearest to 2048 px from below, at least one file tile."""
    return segment * max(1, 2048 // segment)
