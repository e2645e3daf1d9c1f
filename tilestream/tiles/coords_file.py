"""Files of features that TRIDENT or CLAM computed: what is in them, and how their tiles were cut.

Read are `features` (n, d) and `coords` (n, 2), x and y of a tile's top-left in level-0 px, with the attributes of `exports/hdf5.py`.
Sources: https://github.com/mahmoodlab/TRIDENT and https://github.com/mahmoodlab/CLAM (descriptions of their outputs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.sources.base import SlideInfo
from tilestream.sources.hdf5_file import hdf5_errors, read_dataset, read_numbers, read_word

NUMBERS = (
    "patch_size", "patch_size_level0", "patch_level", "custom_downsample", "overlap", "level0_width", "level0_height", "l0_extent",
)  # fmt: skip
"""Attributes that hold numbers which are used."""

LARGEST_NUMBER = 2**31 - 1
"""Largest place, side or level that is taken; no image is as large."""

UNKNOWN = "unknown"
"""The encoder of features whose file names none."""

GRID_TOLERANCE = 1
"""Level-0 px that a tile may lie off its place on the grid: programs round places differently."""


@dataclass(frozen=True)
class Tiling:
    """How tiles were cut."""

    tile: int
    """Side of a tile as the encoder saw it, px."""
    stride: int
    """Step between tiles, px of the same resolution."""
    scale: float
    """Level-0 px per px of a tile."""
    level: int = 0
    """Level that was read, where the file says."""

    @property
    def l0_step(self) -> float:
        """Step between tiles in level-0 px."""
        return self.stride * self.scale

    @property
    def l0_extent(self) -> float:
        """Side of a tile in level-0 px."""
        return self.tile * self.scale


@dataclass(frozen=True)
class TilePlaces:
    """Tiles of a file in row-major order, n of them."""

    order: NDArray[np.int64]
    """(n,) row of the file."""
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    y: NDArray[np.int64]
    """(n,) level-0 px of the top-left."""
    x: NDArray[np.int64]
    tiling: Tiling
    """With the scale that the places have."""
    regular: bool
    """Whether they lie on a grid anchored at level-0 (0, 0); else row and col are ranks among the y and x that occur."""


class PlaceFile:
    """An open HDF5 file of places, with features or without.

    Raises
    ------
    InputError
        It has no `coords` of shape (n, 2) whole numbers, from 0 on.
    """

    no_size = "Add --patch-size-level0 with the side of a tile in level-0 px."
    """The way out for a file that does not say how large a tile is."""

    def __init__(self, path: str, file: Any) -> None:
        self.path = path
        if "coords" not in file:
            raise InputError(f"{path}: has no dataset coords, only {_some(file) or 'nothing'}. Give a file of TRIDENT's or CLAM's patches.")
        coords = read_dataset(path, file, "coords")
        if coords.shape[1] != 2 or coords.dtype.kind not in "iu":
            raise InputError(f"{path}: coords is {coords.shape} {coords.dtype}, but it must be (n, 2) whole numbers: x, y in level-0 px.")
        stored = np.asarray(coords[:])
        if len(stored) and not (stored.min() >= -LARGEST_NUMBER and stored.max() <= LARGEST_NUMBER):
            raise InputError(
                f"{path}: coords reach from {stored.min()} to {stored.max()}, but no image is that large. Compute the file again."
            )
        self.x, self.y = stored.astype(np.int64).T
        """(n,) level-0 px of the top-left of each tile, in the file's order."""
        self.attributes = read_numbers(path, coords, NUMBERS, LARGEST_NUMBER)
        if "l0_extent" in file.attrs:  # ours: the side of a tile before it was rounded
            self.attributes["patch_size_level0"] = read_numbers(path, file, NUMBERS, LARGEST_NUMBER).get("l0_extent", math.nan)

    def tiling(self, info: SlideInfo | None, l0_extent: float | None) -> Tiling:
        """How its tiles were cut, by its attributes.

        Parameters
        ----------
        info : SlideInfo, optional
            The image, for files that name one of its levels.
        l0_extent : float, optional
            Side of a tile in level-0 px, which goes before the file's.

        Raises
        ------
        InputError
            Nothing says how large a tile is, or what is said cannot be.
        """
        told = self.attributes
        level = int(told.get("patch_level", 0))
        ratio = told.get("custom_downsample", 1.0)
        if l0_extent is None:
            l0_extent = told.get("patch_size_level0")
        if l0_extent is None and "patch_size" in told:
            if level == 0:
                l0_extent = told["patch_size"]
            elif info is not None and level < len(info.levels):
                l0_extent = told["patch_size"] * info.levels[level].downsample
        if l0_extent is None:
            raise InputError(
                f"{self.path}: does not say how large a tile is: coords has neither patch_size_level0 nor a patch_size of a level that is known. "
                + self.no_size
            )
        if not (1 <= l0_extent <= LARGEST_NUMBER and ratio > 0):
            raise InputError(
                f"{self.path}: says that a tile is {l0_extent:g} level-0 px a side and custom_downsample {ratio:g}. {self.no_size}"
            )
        tile = round(min(max(1.0, told.get("patch_size", l0_extent) / ratio), LARGEST_NUMBER))
        return Tiling(tile, max(1, tile - round(told.get("overlap", 0))), l0_extent / tile, level)

    def places(self, tiling: Tiling) -> TilePlaces:
        """Its tiles in row-major order, on the grid of `tiling` where they lie on it."""
        x, y = self.x, self.y
        step = grid_step(y, x, tiling.l0_step)
        if step is None:
            row, col = (np.unique(places, return_inverse=True)[1].astype(np.int64) for places in (y, x))
        else:
            row, col = (np.rint(places / step).astype(np.int64) for places in (y, x))
            tiling = replace(tiling, scale=step / tiling.stride)
        order = np.lexsort((col, row))
        return TilePlaces(order, row[order], col[order], y[order], x[order], tiling, step is not None)


class FeatureFile(PlaceFile):
    """An open HDF5 file of features.

    Raises
    ------
    InputError
        It lacks one of the two datasets, or their shapes do not fit.
    """

    def __init__(self, path: str, file: Any) -> None:
        missing = [name for name in ("features", "coords") if name not in file]
        if missing:
            raise InputError(
                f"{path}: has no dataset {' and no '.join(missing)}. Give a file that holds both, as TRIDENT and CLAM write them."
            )
        super().__init__(path, file)
        self.features = read_dataset(path, file, "features")
        if self.features.shape[1] < 1 or self.features.shape[0] != len(self.x):
            raise InputError(
                f"{path}: features {self.features.shape} and coords {(len(self.x), 2)} are not (n, d) and (n, 2) of the same tiles."
            )
        self.encoder = read_word(self.features, "encoder") or UNKNOWN

    @property
    def dtype(self) -> str:
        """The dtype that holds the features without loss, float16 or float32."""
        return "float16" if self.features.dtype == np.float16 else "float32"

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (m, d) float32 of rows of the file, in the order asked for."""
        with hdf5_errors(self.path):
            if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
                return np.asarray(self.features[int(index[0]) : int(index[0]) + len(index)], np.float32)
            order = np.argsort(index, kind="stable")  # HDF5 takes lists of rows in rising order only
            out = np.empty((len(index), self.features.shape[1]), np.float32)
            out[order] = self.features[index[order]]
            return out


def _some(file: Any) -> str:
    """The first names in a file."""
    return ", ".join(name[:80] for name in islice(file, 10))


def grid_step(y: NDArray[np.int64], x: NDArray[np.int64], stated: float) -> float | None:
    """Step in level-0 px of the grid anchored at (0, 0) that tiles lie on, near the `stated` one; None where they lie on none.

    Steps of less than a pixel are those of no grid: places are whole numbers. The stated step may be a rounded one, which is a tile off after some hundreds of tiles: a finer one is taken from the places,
    from the nearest to the farthest, each fixing the number of steps to the next.
    """
    if stated < 1:
        return None
    places = np.unique(np.concatenate([y, x]))
    step = stated
    for place in places[places > 0].tolist():
        count = round(place / step)
        if count == 0 or abs(place - count * step) > GRID_TOLERANCE + count / 2:  # each rounded step is half a px off at most
            return None
        if abs(place - count * stated) > GRID_TOLERANCE:
            step = place / count
    worst = float(np.abs(places - np.rint(places / step) * step).max(initial=0.0))
    return step if worst <= GRID_TOLERANCE and abs(step - stated) <= GRID_TOLERANCE and step >= 1 else None
