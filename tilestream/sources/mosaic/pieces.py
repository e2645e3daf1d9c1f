"""What one file gives of a region of a mosaic: its colours where it alone shows, else its samples where nothing is yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.geometry import Region
from tilestream.sources.bands import Nodata
from tilestream.sources.base import Pixels
from tilestream.sources.sample_values import is_value
from tilestream.sources.tiff.source import TiffSource
from tilestream.sources.wrapped.masked import MaskedSource


@dataclass(frozen=True)
class Piece:
    """One file at one level of the mosaic."""

    source: TiffSource
    number: int
    """Of the level, in the file."""
    taken: Region
    """The pixels of that level that are taken."""
    place: Region
    """Where they lie in the mosaic's level."""
    bands: tuple[int, ...]
    """Of the file, to be read."""
    columns: tuple[int, ...]
    """Where they go among the bands that come out; of an alpha that is only looked at, none."""
    nodata: Nodata
    """Of all columns, or of each."""
    mask: MaskedSource | None
    alpha: bool
    """Whether the last of `bands` says where the image is."""
    own: bool
    """Whether the file's own colours are those of the mosaic where it alone shows."""

    @property
    def opaque(self) -> bool:
        """Whether all that the file stores hides what lies below."""
        return self.nodata is None and self.mask is None and not self.alpha

    @property
    def offset(self) -> tuple[int, int]:
        """What is added to y and x in the mosaic's level for those in the file's."""
        return self.taken.px_y - self.place.px_y, self.taken.px_x - self.place.px_x


def tiles_of(piece: Piece, cut: Region) -> Iterator[tuple[int, int]]:
    """Row and column of each tile of a file that a region of the mosaic's level touches."""
    grid, (off_y, off_x) = piece.source.segment_grid(piece.number), piece.offset
    top, left = cut.px_y + off_y, cut.px_x + off_x
    rows = range(top // grid.height, -(-(top + cut.height) // grid.height))
    return product(rows, range(left // grid.width, -(-(left + cut.width) // grid.width)))


def is_one_tile(piece: Piece, region: Region) -> bool:
    """Whether a region of the mosaic's level is one tile of a file."""
    grid, (off_y, off_x) = piece.source.segment_grid(piece.number), piece.offset
    aligned = (region.px_y + off_y) % grid.height == 0 and (region.px_x + off_x) % grid.width == 0
    return aligned and region.height <= grid.height and region.width <= grid.width


def one_tile(piece: Piece, region: Region, out: Pixels | None) -> Pixels | None:
    """A region that is one tile of the only file, or the topmost, as that reads it."""
    grid, (off_y, off_x) = piece.source.segment_grid(piece.number), piece.offset
    reader = piece.mask or piece.source
    found = reader.read_segment(piece.number, (region.px_y + off_y) // grid.height, (region.px_x + off_x) // grid.width, out)
    return None if found is None else found[: region.height, : region.width]


def painted(there: list[tuple[Piece, Region]], region: Region) -> Pixels:
    """Pixels of files that hide each other, the lowest first; what a file holds no bytes for hides nothing."""
    out = there[0][0].source.pixel.filled(region.height, region.width)
    for piece, cut in reversed(there):
        (off_y, off_x), reader = piece.offset, piece.mask or piece.source
        grid = piece.source.segment_grid(piece.number)
        for row, col in tiles_of(piece, cut):
            found = reader.read_segment(piece.number, row, col)
            tile = overlap(cut, Region(row * grid.height - off_y, col * grid.width - off_x, grid.height, grid.width))
            if found is None or tile is None:
                continue
            y, x = tile.px_y + off_y - row * grid.height, tile.px_x + off_x - col * grid.width
            to_y, to_x = tile.px_y - region.px_y, tile.px_x - region.px_x
            out[to_y : to_y + tile.height, to_x : to_x + tile.width] = found[y : y + tile.height, x : x + tile.width]
    return out


def paste(piece: Piece, cut: Region, region: Region, into: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    """Put what a file holds of `cut`, in the mosaic's level, into the samples of `region` where nothing is yet."""
    grid = piece.source.segment_grid(piece.number)
    off_y, off_x = piece.offset
    top, left = cut.px_y + off_y, cut.px_x + off_x  # in the file's level
    bottom, right = top + cut.height, left + cut.width
    for row in range(top // grid.height, -(-bottom // grid.height)):
        for col in range(left // grid.width, -(-right // grid.width)):
            y0, x0 = max(top, row * grid.height), max(left, col * grid.width)
            y1, x1 = min(bottom, (row + 1) * grid.height), min(right, (col + 1) * grid.width)
            at = (
                slice(y0 - off_y - region.px_y, y1 - off_y - region.px_y),
                slice(x0 - off_x - region.px_x, x1 - off_x - region.px_x),
            )
            if into[1][at].all():
                continue
            stored = piece.source.read_samples(piece.number, row, col, piece.bands)
            if stored is None:
                continue
            found = stored[y0 - row * grid.height : y1 - row * grid.height, x0 - col * grid.width : x1 - col * grid.width]
            _put(piece, found, Region(y0, x0, y1 - y0, x1 - x0), (into[0][at], into[1][at]))


def _put(piece: Piece, found: NDArray[Any], region: Region, into: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    """Put (h, w, b) samples of a region of the file's level where nothing is yet, as far as they are something."""
    (samples, held), inside = into, _inside(piece, found, region)
    valid: NDArray[np.bool_] | None = None
    looked_at, found = len(piece.bands) > len(piece.columns), found[..., : len(piece.columns)]
    if piece.nodata is not None:
        valid = ~_is_nodata(found, piece.nodata)
        if piece.alpha and not looked_at:
            valid[..., -1] = True
    for where in inside:
        valid = np.broadcast_to(where, found.shape) if valid is None else valid & where
    columns = list(piece.columns)
    whole = columns == list(range(samples.shape[-1]))
    if valid is None and whole and not held.any():
        samples[...], held[...] = found, True
        return
    here = held if whole else held[..., columns]
    new = ~here if valid is None else valid & ~here
    if whole:
        np.copyto(samples, found, where=new)
        held |= new
        return
    for number, column in enumerate(columns):
        np.copyto(samples[..., column], found[..., number], where=new[..., number])
        held[..., column] |= new[..., number]


def _is_nodata(found: NDArray[Any], nodata: Nodata) -> NDArray[np.bool_]:
    """(h, w, b): which samples are what stands for nothing."""
    if not isinstance(nodata, tuple):
        return is_value(found, nodata)
    return np.stack([is_value(found[..., band], value) for band, value in enumerate(nodata)], axis=-1)


def _inside(piece: Piece, found: NDArray[Any], region: Region) -> list[NDArray[np.bool_]]:
    """(h, w, 1) each: where the file's alpha and its mask say that the image is."""
    said = [found[..., -1:] > 0] if piece.alpha else []
    return said if piece.mask is None else [*said, piece.mask.inside(piece.number, region)[..., np.newaxis]]


def overlap(a: Region, b: Region) -> Region | None:
    """What two regions of one level share, if anything."""
    y0, x0 = max(a.px_y, b.px_y), max(a.px_x, b.px_x)
    y1, x1 = min(a.px_y + a.height, b.px_y + b.height), min(a.px_x + a.width, b.px_x + b.width)
    return Region(y0, x0, y1 - y0, x1 - x0) if y1 > y0 and x1 > x0 else None
