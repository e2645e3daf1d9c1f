"""Made images in the formats that `bench_reading` reads, and the tile lists that it asks for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tilestream.geometry import Size, TileGrid
from tilestream.sources.made.histology import KINDS, LABEL_CELL, choose_period, make_labels, make_texture

QUALITY = 85
"""Of JPEG, as scanners use it."""

PSNR = 38
"""Of JPEG 2000, dB: about what Aperio's 33005 files have."""

JPEG_2000_APERIO = 33005
OUR_SHARD = 2048
"""Tiles in one list, the default of `compute.shard_tiles`."""


@dataclass(frozen=True)
class Picture:
    """One image on disk."""

    path: Path
    codec: str
    """jpeg | jpeg2000 | deflate | ome-zarr."""
    piece: int
    """Side of a file tile or chunk, px."""
    side: int
    """Side of the image, px."""


@dataclass(frozen=True)
class Case:
    """A list of output tiles of a picture; none hangs over its edge."""

    picture: Picture
    tile: int
    """Side of an output tile, px; also the step between them."""

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) y and x of the tiles' top-left corners, level-0 px, row-major."""
        grid = TileGrid(Size(self.picture.side, self.picture.side), self.tile, self.tile, 1.0, "drop")
        row, col = grid.candidates()
        return grid.l0_origins(row), grid.l0_origins(col)

    @property
    def tiles(self) -> int:
        """Output tiles."""
        return len(self.places[0])

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.tiles * self.tile**2

    @cached_property
    def file_tiles(self) -> list[tuple[int, int]]:
        """(row, column) of each file tile that an output tile overlaps, row-major."""
        return needed_pieces(*self.places, self.tile, self.picture.piece)


def needed_pieces(l0_y: NDArray[np.int64], l0_x: NDArray[np.int64], tile: int, piece: int) -> list[tuple[int, int]]:
    """(row, column), row-major, of the file tiles under tiles that lie inside the image: no reader can do with fewer."""
    seen: set[tuple[int, int]] = set()
    for y, x in zip(l0_y.tolist(), l0_x.tolist(), strict=True):
        rows, cols = range(y // piece, (y + tile - 1) // piece + 1), range(x // piece, (x + tile - 1) // piece + 1)
        seen.update((row, col) for row in rows for col in cols)
    return sorted(seen)


def make_tissue(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """(side, side, 3) uint8 like stained tissue, without glass: what is read in earnest, and the hardest to decode."""
    labels = np.maximum(make_labels(side, side, seed), 1)
    period = choose_period(side, side, 0.25)
    out = np.empty((side, side, 3), np.uint8)
    for kind in range(1, len(KINDS)):
        texture = make_texture(kind, seed, 0.25, period)
        for row, col in np.argwhere(labels == kind).tolist():
            y, x = row * LABEL_CELL, col * LABEL_CELL
            space = out[y : y + LABEL_CELL, x : x + LABEL_CELL]
            space[:] = texture[y % period :, x % period :][: space.shape[0], : space.shape[1]]
    return out


def write_picture(folder: Path, image: NDArray[np.uint8], codec: str, piece: int) -> Picture:
    """Write level 0 and its half in one of the formats."""
    path = folder / f"{codec}-{piece}.{'zarr' if codec == 'ome-zarr' else 'tif'}"
    if codec == "ome-zarr":
        _write_zarr(path, image, piece)
    else:
        _write_tiff(path, image, codec, piece)
    return Picture(path, codec, piece, len(image))


def _write_tiff(path: Path, image: NDArray[np.uint8], codec: str, piece: int) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "compression": codec}
    if codec == "jpeg":
        options |= {"photometric": "ycbcr", "subsampling": (2, 2), "compressionargs": {"level": QUALITY}}
    text = None
    if codec == "jpeg2000":
        # tifffile writes no Aperio code, but takes segments that are encoded already; then nothing but the code is foreign.
        text = f"Aperio Image Library v12.0.0\n{len(image)}x{len(image)}|AppMag = 40|MPP = 0.25"
        options["compression"] = JPEG_2000_APERIO
    with tifffile.TiffWriter(path) as tif:
        for k, pixels in enumerate((image, np.ascontiguousarray(image[::2, ::2]))):
            data: Any = pixels
            if codec == "jpeg2000":
                data = (imagecodecs.jpeg2k_encode(part, level=PSNR, codecformat="j2k") for part in _pieces(pixels, piece))
            kind = 1 if k and text is None else 0
            tif.write(
                data, shape=pixels.shape, dtype=np.uint8, tile=(piece, piece), subfiletype=kind, description=text, metadata=None, **options
            )


def _pieces(pixels: NDArray[np.uint8], piece: int) -> Any:
    """(piece, piece, 3) file tiles row-major, those at the edge filled up."""
    for y in range(0, pixels.shape[0], piece):
        for x in range(0, pixels.shape[1], piece):
            part = pixels[y : y + piece, x : x + piece]
            missing = [(0, piece - part.shape[0]), (0, piece - part.shape[1]), (0, 0)]
            yield np.ascontiguousarray(np.pad(part, missing, mode="edge"))


def _write_zarr(path: Path, image: NDArray[np.uint8], piece: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for k, pixels in enumerate((image, image[::2, ::2])):
        stored = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        array = group.create_array(str(k), shape=stored.shape, chunks=(3, piece, piece), dtype="uint8", compressors=[ZstdCodec(level=3)])
        array[:] = stored
        scale = [1.0, 0.25 * 2**k, 0.25 * 2**k]
        datasets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx")]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "made", "axes": axes, "datasets": datasets}]}
