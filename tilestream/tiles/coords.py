"""Tiles that another program chose: `tiles.from`, files of places as TRIDENT and CLAM write them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilestream.config.local_files import refuse_special
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import PlacedGrid, TileGrid, level_for_scale
from tilestream.sources.base import SlideInfo
from tilestream.sources.hdf5_file import hdf5_errors, open_hdf5
from tilestream.tiles.coords_file import GRID_TOLERANCE, PlaceFile, Tiling, grid_step
from tilestream.tiles.read_spec import ReadSpec

SLIDE = "{slide}"
"""Stands for a slide's id in `tiles.from`."""

SUFFIXES = ("_patches.h5", ".h5")
"""Behind a slide's id in a folder: of TRIDENT's patches, of CLAM's patches and of features."""

Index = NDArray[np.int64]


class ChosenFile(PlaceFile):
    """A file that `tiles.from` names."""

    no_size = "Choose the tiles again with a program that writes one of them."


def check_chosen(chosen: str | None, slides: int) -> None:
    """Refuse one file for several slides.

    Raises
    ------
    ConfigError
        With the ways to name one for each.
    """
    if chosen is not None and slides > 1 and SLIDE not in chosen and not Path(chosen).is_dir():
        raise ConfigError(
            f"tiles.from: {chosen} is one file, but there are {slides} slides. Name the folder that holds <slide id>_patches.h5 or <slide id>.h5, "
            f"or a pattern such as features/{SLIDE}.h5."
        )


def find_file(chosen: str, slide: str) -> Path:
    """The file of a slide.

    Raises
    ------
    InputError
        There is none.
    """
    if SLIDE in chosen:
        tried = [Path(chosen.replace(SLIDE, slide))]
    elif Path(chosen).is_dir():
        tried = [Path(chosen) / f"{slide}{suffix}" for suffix in SUFFIXES]
    else:
        tried = [Path(chosen)]
    for path in tried:
        refuse_special(path, f"{slide}: tiles.from")
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise InputError(f"{slide}: tiles.from: there is no file {' or '.join(map(str, tried))}. Choose its tiles, or leave the slide out.")
    return found


@contextmanager
def open_places(path: Path) -> Iterator[ChosenFile]:
    """An open file of places.

    Raises
    ------
    ConfigError
        h5py is not installed.
    InputError
        It is no HDF5 file, or has no places.
    """
    with open_hdf5(path) as opened:
        with hdf5_errors(str(path)):
            file = ChosenFile(str(path), opened)
        yield file


def place_tiles(path: Path, info: SlideInfo, size: int, slide: str) -> tuple[PlacedGrid, Index, Index]:
    """The grid of a file's tiles, and (n,) rows and (n,) columns of its tiles, row-major.

    Parameters
    ----------
    path : Path
        The file.
    info : SlideInfo
        The image.
    size : int
        Side of a tile as the encoder gets it, px.
    slide : str
        Name of the image in errors.

    Raises
    ------
    InputError
        The file is not of this image, or a tile begins outside it or is there twice.
    """
    with open_places(path) as file:
        check_image(file, info, slide)
        tiling = file.tiling(info, None)
        x, y = file.x, file.y
    check_places(path, y, x, info, slide)
    scale = tiling.l0_extent / size
    lattice = _lattice(y, x, tiling)
    if lattice is None:
        step, (ys, row), (xs, col) = tiling.l0_step, *(_ranks(places) for places in (y, x))
    else:
        step, (ys, row), (xs, col) = lattice
    # Steps of a lattice are known to within a pixel over all of it: tiles that meet, meet.
    stride = float(size) if abs(step - tiling.l0_extent) <= GRID_TOLERANCE / max(1, len(ys), len(xs)) else step / scale
    grid = PlacedGrid(info.size, size, stride, scale, "pad", l0_ys=ys, l0_xs=xs, lattice=lattice is not None)
    order = np.lexsort((col, row))
    return grid, row[order], col[order]


def check_image(file: PlaceFile, info: SlideInfo, slide: str) -> None:
    """Refuse a file that says that its image has another size."""
    for name, seen in (("level0_width", info.size.width), ("level0_height", info.size.height)):
        told = file.attributes.get(name)
        if told is not None and int(told) != seen:
            raise InputError(
                f"{slide}: {file.path} is of another image: its {name} is {int(told)}, that of the slide {seen}. Name the slide's own file."
            )


def check_places(path: Path | str, y: Index, x: Index, info: SlideInfo | None, slide: str) -> None:
    """Refuse tiles that begin outside the image, where there is one, and tiles that are there twice. Raises InputError."""
    if info is not None:
        outside = np.flatnonzero((y < 0) | (x < 0) | (y >= info.size.height) | (x >= info.size.width))
        if len(outside):
            k = int(outside[0])
            raise InputError(
                f"{slide}: {path}, row {k}: a tile begins at y {y[k]}, x {x[k]}, but the image is {info.size.height} x {info.size.width} px (h x w) "
                f"({len(outside)} of {len(x)} tiles begin outside). Name the slide's own file; coords are x, y in level-0 px."
            )
    if len(x):
        places, counts = np.unique(np.stack([y, x], axis=1), axis=0, return_counts=True)
        if counts.max() > 1:
            top, left = places[counts.argmax()].tolist()
            raise InputError(f"{slide}: {path}: the tile at y {top}, x {left} is there {counts.max()} times. Choose the tiles again.")


def _ranks(places: Index) -> tuple[Index, Index]:
    """The places that occur, ascending, and the rank of each."""
    found, rank = np.unique(places, return_inverse=True)
    return found, rank.astype(np.int64)


def _lattice(y: Index, x: Index, tiling: Tiling) -> tuple[float, tuple[Index, Index], tuple[Index, Index]] | None:
    """Step, and for both axes the places of all lattice lines and the line of each tile; None where tiles lie on no lattice."""
    if not len(y):
        return tiling.l0_step, (np.zeros(0, np.int64), y), (np.zeros(0, np.int64), x)
    for origin in ((0, 0), (int(y.min()), int(x.min()))):
        step = grid_step(y - origin[0], x - origin[1], tiling.l0_step)
        if step is not None:
            axes = [_lines(places, start, step) for places, start in zip((y, x), origin, strict=True)]
            if axes[0] is not None and axes[1] is not None:
                return step, axes[0], axes[1]
    return None


def _lines(places: Index, origin: int, step: float) -> tuple[Index, Index] | None:
    """Places of the lattice lines from the first inside the image to the last used, and the line of each tile; None where a line has two places."""
    first = -int(origin // step)
    index = np.rint((places - origin) / step).astype(np.int64) - first
    lines = np.rint(origin + (np.arange(index.max() + 1) + first) * step).astype(np.int64)
    lines[index] = places
    return (lines, index) if np.array_equal(lines[index], places) else None


def placed_spec(grid: TileGrid, info: SlideInfo, name: str) -> ReadSpec:
    """How tiles that a file gave are read.

    Raises
    ------
    InputError
        Their pixels would have to be invented.
    """
    level = level_for_scale(info.levels, grid.scale)
    if level is None:
        raise InputError(
            f"{name}: tiles.from has tiles of {grid.l0_extent:g} level-0 px, and tiles.size is {grid.tile}: pixels are averaged, never invented. "
            f"Set tiles.size to {math.floor(grid.l0_extent)} or less."
        )
    return ReadSpec(level, info.levels[level].downsample, grid.tile, grid.scale)
