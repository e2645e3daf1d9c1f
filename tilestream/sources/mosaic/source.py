"""Pixels of a mosaic: each file is read by its own tiles, and samples are put together before they become colours, as in the merged file."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from tilestream.config.bands.band import Band
from tilestream.errors import ConfigError
from tilestream.geometry import Level, Region, Size, downsample_from_sizes
from tilestream.sources.bands import Nodata, nodata_words, sample_of
from tilestream.sources.base import RGB, WHITE, Pixels, SegmentGrid, SlideInfo, Source, SourceOptions
from tilestream.sources.channel_names import list_channels
from tilestream.sources.geo import GeoReference
from tilestream.sources.mosaic.choosing import ChosenBands, Taken, choose_bands
from tilestream.sources.mosaic.listing import list_parts
from tilestream.sources.mosaic.parts import Listed
from tilestream.sources.mosaic.pieces import Piece, is_one_tile, one_tile, overlap, painted, paste, tiles_of
from tilestream.sources.mosaic.placing import Placed, place_parts
from tilestream.sources.resolution import UNKNOWN, resolution_from_config
from tilestream.sources.sample_values import is_value
from tilestream.sources.tiff.source import TiffSource
from tilestream.sources.wrapped.masked import MaskedSource

SIDE = 1024
"""Least side of a piece where the files' own tiles do not lie on one grid, px: at this size a tile is decoded 1.6 times where it has 256, not 4 times."""

FETCHED_AT_ONCE = 4
"""Files of a server that are fetched ahead at the same time."""

MOST_PIXELS = 1 << 22
"""Of a piece, where its sides may be chosen."""


class MosaicSource(Source):
    """Several TIFF files as one image. Where files lie on each other, the first that holds something shows, band by band; holes are white.

    Raises
    ------
    InputError
        Nothing there, a file is refused, or the files share no CRS, no size of pixels, no grid or no kind of samples.
    """

    def __init__(self, address: str, options: SourceOptions) -> None:
        if options.backend not in ("auto", "tiff"):
            raise ConfigError(f"source.backend: {options.backend}, but the files of a mosaic are read as tiff. Leave it out.")
        listed = list_parts(address)
        self._opened: dict[str, TiffSource] = {}
        try:
            bands = choose_bands(listed, self._opened, address, options)
            self._fill = _fill([bands.rule.nodata, *(each.nodata for each in bands.taken.values())], bands.kind)
            placed, size, geo = place_parts(bands.listed, self._opened, address)
            self._rule, self._kind, self._count = bands.rule, bands.kind, bands.count
            self.pixel = bands.rule.pixel
            self._pieces = _levels(placed, size, bands.taken)
            levels = tuple(Level(part := _part_of(size, factor), downsample_from_sizes(size, part)) for factor in self._pieces)
            self._levels = tuple(self._pieces.values())
            self._grids = tuple(_grid(found.size, pieces) for found, pieces in zip(levels, self._levels, strict=True))
            self.fetched = any(source.fetched for source in self._opened.values())
            about = _about(self._opened, placed, geo, self._grids[0], bands)
            self.info = _info(address, options, placed, levels, geo, about)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files; may be called twice."""
        for source in self._opened.values():
            source.close()

    def pictured(self) -> MosaicSource:
        if not self.pixel.bands:
            return self
        picture = copy.copy(self)
        picture._rule = self._rule.as_picture  # noqa: SLF001  # its own
        picture._levels = tuple([replace(piece, own=False) for piece in level] for level in self._levels)  # noqa: SLF001  # its own
        picture.pixel, picture.info = RGB, replace(self.info, bands=())
        return picture

    @contextmanager
    def _ahead(self, level: int, places: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Fetch ahead of the first `FETCHED_AT_ONCE` files that are touched; others are asked for tile by tile."""
        grid = self._grids[level]
        wanted: dict[int, dict[tuple[int, int], None]] = {}
        for row, col in places:
            region = Region(row * grid.height, col * grid.width, grid.height, grid.width)
            for number, piece in enumerate(self._levels[level]):
                if piece.source.fetched and (number in wanted or len(wanted) < FETCHED_AT_ONCE):
                    cut = overlap(piece.place, region)
                    if cut is not None:
                        wanted.setdefault(number, {}).update(dict.fromkeys(tiles_of(piece, cut)))
        with ExitStack() as stack:
            for number, tiles in wanted.items():
                piece = self._levels[level][number]
                stack.enter_context(piece.source.ahead(piece.number, tiles))
            yield

    def ahead(self, level: int, places: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        return self._ahead(level, places) if self.fetched else nullcontext()

    def ahead_bytes(self, level: int) -> int:
        held = sorted((piece.source.ahead_bytes(piece.number) for piece in self._levels[level]), reverse=True)
        return sum(held[:FETCHED_AT_ONCE])

    @property
    def _over(self) -> int:
        """The band that is alpha, among those that come out; -1 where none is."""
        return -1 if self._rule.alpha == "none" else self._count - 1

    def segment_grid(self, level: int) -> SegmentGrid:
        """The files' own tiles where those lie on one grid, else squares of at least `SIDE` px."""
        return self._grids[level]

    def held_bytes(self, level: int, pixels: int) -> int:
        """What the file that holds most takes, the samples that are put together and where they hold something, and their RGB."""
        grid = self._grids[level]
        area = max(grid.height * grid.width, pixels)
        own = max(piece.source.held_bytes(piece.number, 0) for piece in self._levels[level])
        masks = [piece.mask.held_bytes(piece.number, area) for piece in self._levels[level] if piece.mask is not None]
        put_together = area * (self._count * (2 * self._kind.itemsize + 3) + 4 + self.pixel.bytes)
        return own + max(masks, default=0) + put_together + self._rule.mapping_bytes

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels | None:
        """(h, w, 3) uint8 of one piece, cropped to the image; None where no file lies. Raises ReadError."""
        grid = self._grids[level]
        region = Region(row * grid.height, col * grid.width, grid.height, grid.width).clipped(self.info.levels[level].size)
        if region is None:
            raise IndexError(f"piece ({row}, {col}) of a grid of {grid.rows} x {grid.cols}")
        return self._merged(level, region, out)

    def _read(self, level: int, region: Region) -> Pixels:
        return self._read_pieces(level, region)

    def _merged(self, level: int, region: Region, out: Pixels | None) -> Pixels | None:
        """(h, w, 3) uint8 of a region, None where no file lies; colours where files hide each other or lie alone, else samples are put together."""
        there = [(piece, cut) for piece in self._levels[level] if (cut := overlap(piece.place, region)) is not None]
        if not there:
            return None
        if all(piece.own and (piece.opaque or len(there) == 1) for piece, _ in there):
            return (
                one_tile(there[0][0], region, out) if there[0][1] == region and is_one_tile(there[0][0], region) else painted(there, region)
            )
        samples = np.full((region.height, region.width, self._count), self._fill, self._kind)
        if self._rule.alpha != "none":
            samples[..., self._over] = 0
        held = np.zeros(samples.shape, np.bool_)
        for number, (piece, cut) in enumerate(there):
            paste(piece, cut, region, (samples, held))
            if number + 1 < len(there) and held.all():
                break
        pixels = self._rule.pixels(samples)
        if self.pixel.bands:
            pixels[~held[..., : self.pixel.bands]] = np.nan
            return pixels
        shown = [band for band in self._rule.channels or range(self._count) if band != self._over]
        nodata = self._rule.nodata if isinstance(self._rule.nodata, tuple) else (self._rule.nodata,) * len(shown)
        something = [held[..., band] & ~is_value(samples[..., band], value) for band, value in zip(shown, nodata, strict=True)]
        empty = np.logical_not(np.logical_or.reduce(something))  # five times as fast as any(axis=-1)
        return np.where(empty[..., np.newaxis], np.uint8(WHITE), pixels) if empty.any() else pixels


def _part_of(size: Size, factor: int) -> Size:
    return Size(-(-size.height // factor), -(-size.width // factor))


def _levels(placed: tuple[Placed, ...], size: Size, taken: dict[int, Taken]) -> dict[int, list[Piece]]:
    """The pieces of each level by its downsample, finest first: those that all files have, and on whose pixels all of their borders fall."""
    factors = [1]
    for level in placed[0].source.info.levels[1:]:
        factor = round(level.downsample)
        if factor > factors[-1] and all(_number(each, factor, size) is not None for each in placed):
            factors.append(factor)
    masks = {id(each.source): MaskedSource(each.source, each.source.mask) for each in placed if each.source.mask is not None}
    found: dict[int, list[Piece]] = {}
    for factor in factors:
        found[factor] = [
            Piece(
                each.source, number, _shrunk(each.taken, factor), _shrunk(each.place, factor), said.bands, said.columns, said.nodata,
                masks.get(id(each.source)) if each.part.masked else None, said.alpha, said.own,
            )
            for each in placed
            if (number := _number(each, factor, size)) is not None and (said := taken.get(id(each.part))) is not None
        ]  # fmt: skip
    return found


def _fill(nodata: Sequence[Nodata], kind: np.dtype[Any]) -> float:
    """What bands of a pixel hold that no file has: what stands for nothing, where samples can say it."""
    for value in (each for said in nodata for each in (said if isinstance(said, tuple) else (said,))):
        if value is not None and sample_of(value, kind) is not None:
            return value
    return 0


def _shrunk(region: Region, factor: int) -> Region:
    return Region(region.px_y // factor, region.px_x // factor, -(-region.height // factor), -(-region.width // factor))


def _number(each: Placed, factor: int, whole: Size) -> int | None:
    """The level of a file that has `factor` px of its finest in one, if its borders in the mosaic fall on such pixels."""
    if factor == 1:
        return 0
    own, place = each.source.info.size, each.place
    ends = (place.px_y + place.height, whole.height), (place.px_x + place.width, whole.width)
    if place.px_y % factor or place.px_x % factor or any(end % factor and end != last for end, last in ends):
        return None
    if each.taken != Region(0, 0, own.height, own.width):
        return None
    return next((k for k, level in enumerate(each.source.info.levels) if level.size == _part_of(own, factor)), None)


def _grid(size: Size, pieces: list[Piece]) -> SegmentGrid:
    """The grid of the files' own tiles where all lie on it, else one of larger pieces."""
    grids = [piece.source.segment_grid(piece.number) for piece in pieces]
    offsets = [piece.offset for piece in pieces]
    high, wide = max(grid.height for grid in grids), max(grid.width for grid in grids)
    if any(x % wide or grid.width != wide for (_, x), grid in zip(offsets, grids, strict=True)):
        wide = max(SIDE, wide)
    if any(y % high or grid.height != high for (y, _), grid in zip(offsets, grids, strict=True)) or wide > max(
        grid.width for grid in grids
    ):
        high = max(high, min(SIDE, MOST_PIXELS // wide // high * high))
    high, wide = min(high, size.height), min(wide, size.width)
    return SegmentGrid(high, wide, -(-size.height // high), -(-size.width // wide))


@dataclass(frozen=True)
class _About:
    """What is told of a mosaic."""

    reason: str
    fingerprint: str
    properties: dict[str, str]
    warnings: tuple[str, ...]
    bands: tuple[Band, ...]


def _info(
    address: str, options: SourceOptions, placed: tuple[Placed, ...], levels: tuple[Level, ...], geo: GeoReference | None, about: _About
) -> SlideInfo:
    first = placed[0].source.info
    stated = resolution_from_config(options.mpp) if options.mpp is not None else UNKNOWN if geo is None else geo.resolution()
    return SlideInfo(
        address=address,
        backend="mosaic",
        reason=about.reason,
        levels=levels,
        mpp=stated.mpp,
        mpp_source=stated.source,
        vendor=first.vendor,
        compression=first.compression,
        fingerprint=about.fingerprint,
        properties=about.properties,
        warnings=tuple(dict.fromkeys(stated.warnings + about.warnings)),
        geo=geo,
        bands=about.bands,
        parts=tuple(dict.fromkeys(each.place for each in placed)),
    )


def _about(
    opened: dict[str, TiffSource], placed: tuple[Placed, ...], geo: GeoReference | None, grid: SegmentGrid, bands: ChosenBands
) -> _About:
    listed = bands.listed
    own = [opened[each.part.path].index.nodata for each in placed]
    said = {nodata_words(each.part.stated if of_file is None else of_file) for each, of_file in zip(placed, own, strict=True)}
    nodata = sorted(said - {"none"})
    properties = {
        "mosaic.files": str(len(opened)),
        "mosaic.order": listed.order,
        "tiff.tile_height": str(grid.height),
        "tiff.tile_width": str(grid.width),
        **({} if geo is None else geo.facts()),
        **({"geo.nodata": ", ".join(nodata)} if nodata else {}),
        **({"channels": told} if (told := list_channels([band.name for band in bands.bands])) else {}),
    }
    warnings = tuple(word for source in opened.values() for word in source.info.warnings)
    reason = f"mosaic: {len(opened)} files of {listed.kind}, {listed.order}"
    return _About(reason, _fingerprint(listed, opened, placed), properties, warnings, bands.chosen)


def _fingerprint(listed: Listed, opened: dict[str, TiffSource], placed: tuple[Placed, ...]) -> str:
    """Digest of the files, of their places and bands, and of the order in which they lie; the same wherever they are kept."""
    told = [
        [
            opened[each.part.path].info.fingerprint,
            each.part.bands,
            each.part.nodata,
            each.part.masked,
            astuple(each.taken),
            astuple(each.place),
            *([each.part.stated] if each.part.stated is not None and opened[each.part.path].index.nodata is None else []),
        ]
        for each in placed
    ]
    whole = [told, listed.nodata, listed.alpha, listed.transform, None if listed.size is None else astuple(listed.size)]
    return hashlib.blake2b(json.dumps(whole).encode(), digest_size=16).hexdigest()
