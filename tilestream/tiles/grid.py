"""Which squares of an image become tiles: their grid, the level that they are read from, and those that hold tissue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.config.load import load_config
from tilestream.config.schema import Tiles
from tilestream.errors import InputError, user_code, without_credentials
from tilestream.geometry import PlacedGrid, Region, TileGrid, level_for_scale, scale_from_mpp
from tilestream.sources.base import SlideInfo, Source
from tilestream.sources.resolution import magnification_words
from tilestream.store.layout import TileColumns
from tilestream.store.picture import plot_axes
from tilestream.tiles.annotations.mask_files import bounds_corner
from tilestream.tiles.coords import find_file, place_tiles, placed_spec
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.thumbnail import Thumbnail, read_thumbnail
from tilestream.tiles.tissue import find_tissue, tile_fractions

FLOAT_NOISE = 1e-9
"""Relative error of a quotient of two resolutions."""

WORTH_A_WORD = 0.001
"""Relative difference of resolutions below which nobody is told."""


@dataclass(frozen=True, kw_only=True)
class TileSet:
    """The tiles of one image that are kept, and how they are read. Small: no pixels but the thumbnail's."""

    info: SlideInfo
    """The image."""
    grid: TileGrid
    """Where tiles lie."""
    spec: ReadSpec
    """The level that they are read from, and how."""
    tile_row: NDArray[np.int64]
    """(n,) rows of the kept tiles on the grid; tiles are in row-major order."""
    tile_col: NDArray[np.int64]
    """(n,) their columns."""
    tissue: NDArray[np.float32]
    """(n,) fraction of each kept tile that is tissue."""
    thumbnail: Thumbnail
    """The whole image, small."""
    mask: NDArray[np.bool_]
    """(h, w) tissue, on the thumbnail's pixels."""
    warnings: tuple[str, ...] = ()
    """What a person should know of the image and of how it is read."""

    def __len__(self) -> int:
        return len(self.tile_row)

    def __repr__(self) -> str:
        name, side = without_credentials(self.info.address), self.spec.tile
        return f"<tiles of {name}: {len(self)} of {self.candidates}, {side} px, read from level {self.spec.level}>"

    @property
    def candidates(self) -> int:
        """Number of tiles before tissue was looked at."""
        return len(self) if isinstance(self.grid, PlacedGrid) else self.grid.count

    @property
    def padded(self) -> NDArray[np.bool_]:
        """(n,) whether a tile hangs over the image."""
        return self.grid.overhangs(self.tile_row, self.tile_col)

    @property
    def positions(self) -> NDArray[np.int64]:
        """(n, 2) y, x of each tile's top-left in level-0 px."""
        return np.stack([self.grid.l0_y(self.tile_row), self.grid.l0_x(self.tile_col)], axis=1)

    @property
    def kept_sha256(self) -> str:
        """Digest of which tiles are kept."""
        return hashlib.sha256(np.stack([self.tile_row, self.tile_col]).astype("<i8").tobytes()).hexdigest()

    @property
    def stride_um(self) -> float | None:
        """Step between tiles in µm; None where the image has no scale."""
        return None if self.info.mpp is None else self.grid.stride * self.grid.scale * self.info.mpp

    def plot(self, axes: Any = None, *, values: NDArray[Any] | None = None) -> Any:
        """Draw the tiles over the thumbnail into matplotlib axes, new ones where none are given, and return the axes.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            In level-0 px, y downwards.
        values : (n,) floating point, optional
            Colours of the tiles, with a colour bar; without, their outlines are drawn. Tiles whose value is NaN stay clear.

        Raises
        ------
        ConfigError
            matplotlib is not installed.
        """
        axes = plot_axes(axes)
        from matplotlib.collections import PolyCollection

        height, width = self.info.size.height, self.info.size.width
        axes.imshow(self.thumbnail.pixels, extent=(0, width, height, 0), interpolation="nearest")
        whole = values is None or not self.grid.regular  # of tiles that overlap, values are drawn as cells around their centres
        side = self.grid.l0_extent if whole else self.grid.l0_step
        corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * side + (self.grid.l0_extent - side) / 2
        squares = PolyCollection(list(self.positions[:, None, ::-1] + corners), linewidths=0.6)
        if values is None:
            squares.set(facecolor="none", edgecolor="#0072b2")
        else:
            squares.set(array=np.ma.masked_invalid(values), alpha=0.7, edgecolor="none", cmap="viridis")
            axes.figure.colorbar(squares, ax=axes)
        axes.add_collection(squares)
        axes.set(xlim=(0, width), ylim=(height, 0), xlabel="x, level-0 px", ylabel="y, level-0 px")
        return axes


def find_tiles(
    image: Source,
    *,
    size: int = 224,
    mpp: float | None = None,
    level: int | None = None,
    stride: int | None = None,
    edge: str = "pad",
    tissue: Any = "otsu",
) -> TileSet:
    """Find the tiles of an image that hold tissue; a thumbnail is read, no full-resolution pixels where a coarser level exists.

    Parameters
    ----------
    image : Source
        From `open_image`.
    size : int
        Side of a tile as the encoder gets it, px at the target resolution.
    mpp, level : float or int
        The target resolution in µm/px, or the level whose pixels are taken as they are: exactly one of them.
    stride : int, optional
        Step between tile origins, px at the target resolution; `size` where it is not given.
    edge : str
        `pad` fills what hangs over the image with white, `drop` leaves such tiles out.
    tissue : str or mapping
        As `tiles.tissue` in a config: `otsu`, `none`, `{"mask": "tissue.geojson"}`, `"module:function"`, ...

    Returns
    -------
    tiles : TileSet
        In row-major order, the order of the rows that `embed` gives.

    Raises
    ------
    ConfigError
        The arguments contradict each other; names each as `tiles.<argument>`.
    InputError
        The image has no resolution but `mpp` asks for one, is coarser than what is asked for, or the mask cannot be used.
    """
    if not isinstance(image, Source):
        raise TypeError(f"image: {type(image).__name__}, but find_tiles takes what open_image gives.")
    given = {"size": size, "mpp": mpp, "level": level, "stride": stride, "edge": edge, "tissue": tissue}
    whole = {"slides": image.info.address, "output": ".", "encoder": "patch_embed"}  # what else a config must have
    tiles = load_config({**whole, "tiles": {key: value for key, value in given.items() if value is not None}}).tiles
    mask = tiles.tissue.mask
    return choose_tiles(image, tiles, Path(image.info.address).stem, None if mask is None else Path(mask))


def choose_tiles(source: Source, tiles: Tiles, name: str, mask: Path | None, stored: TileColumns | None = None) -> TileSet:
    """The tiles of an image as the section `tiles` of a config wants them; `mask` is the file that says where tissue is, if any does.

    Those that its store has, where that was begun earlier, are taken as they are: no tissue is looked for.

    Raises
    ------
    InputError
        The image cannot serve it: see `make_grid`, or the mask, or the file that tiles come from, cannot be used.
    """
    info, tissue = source.info, tiles.tissue
    if tiles.chosen is None:
        grid, spec = make_grid(info, tiles, name)
        tile_row, tile_col = grid.candidates()
        if info.parts:
            there = touching(grid, tile_row, tile_col, info.parts)
            tile_row, tile_col = tile_row[there], tile_col[there]
    else:
        grid, tile_row, tile_col = place_tiles(find_file(tiles.chosen, name), info, tiles.size, name)
        spec = placed_spec(grid, info, name)
    spec = replace(spec, pixel=source.pixel)
    warnings = info.warnings + coarser_than_asked(info, grid, tiles)
    if stored is not None:
        nothing = Thumbnail(np.empty((0, 0, 3), np.uint8), 1.0)
        return TileSet(
            info=info, grid=grid, spec=spec, tile_row=stored.row, tile_col=stored.col, tissue=stored.tissue, thumbnail=nothing,
            mask=np.empty((0, 0), np.bool_), warnings=warnings,
        )  # fmt: skip
    thumbnail = read_thumbnail(source)
    um_per_px = None if info.mpp is None else info.mpp * thumbnail.downsample
    with user_code(f"tiles.tissue.function: {tissue.function}", name) if tissue.method == "function" else nullcontext():
        found = find_tissue(thumbnail, tissue, um_per_px, file=mask, corner=bounds_corner(tissue, info))
    fraction = tile_fractions(found.mask, thumbnail.downsample, grid, tile_row, tile_col)
    if (tissue.method != "none" or mask is not None) and tiles.chosen is None:
        keep = (fraction >= tissue.min_fraction) & (fraction > 0)
        tile_row, tile_col, fraction = tile_row[keep], tile_col[keep], fraction[keep]
        if not len(tile_row):
            warnings += tuple(_why_no_tile(found.mask, tiles, mask))
    if thumbnail.unreadable:
        warnings += (f"{thumbnail.unreadable / found.mask.size:.1%} of the thumbnail cannot be read; tiles there are kept.",)
    return TileSet(
        info=info, grid=grid, spec=spec, tile_row=tile_row, tile_col=tile_col, tissue=fraction, thumbnail=thumbnail, mask=found.mask,
        warnings=warnings + found.warnings,
    )  # fmt: skip


def touching(grid: TileGrid, tile_row: NDArray[np.int64], tile_col: NDArray[np.int64], parts: Sequence[Region]) -> NDArray[np.bool_]:
    """(n,) whether a tile touches one of the parts of an image that is put together: elsewhere there is nothing."""
    y, x, side = grid.l0_y(tile_row), grid.l0_x(tile_col), grid.l0_extent
    found = np.zeros(len(tile_row), np.bool_)
    for part in parts:
        down = (y < part.px_y + part.height) & (y + side > part.px_y)
        found |= down & (x < part.px_x + part.width) & (x + side > part.px_x)
    return found


def _why_no_tile(found: NDArray[np.bool_], tiles: Tiles, file: Path | None) -> Iterator[str]:
    """What a person should know of an image without a tile, where it is not that no tissue was seen."""
    if found.any():
        drawn = "the tissue that was found" if file is None else f"what {file} marks"
        yield (
            f"no tile is kept: {drawn} covers {found.mean():.2%} of the image and less than tiles.tissue.min_fraction ({tiles.tissue.min_fraction:g}) of each tile. "
            "Lower that, or tiles.size."
        )
    elif file is not None:
        yield f"no tile is kept: {file} marks no part of the image as tissue."


def _scale(target_mpp: float, mpp: float, tolerance: float) -> float:
    """Level-0 pixels per output pixel: exactly 1 where the image is coarser than the target by no more than `tolerance`."""
    scale = scale_from_mpp(target_mpp, mpp)
    return 1.0 if scale < 1 and mpp / target_mpp - 1 <= tolerance * (1 + FLOAT_NOISE) else scale


def coarser_than_asked(info: SlideInfo, grid: TileGrid, tiles: Tiles) -> tuple[str, ...]:
    """A warning where level 0 is taken as it is though it is coarser than `tiles.mpp` (by more than the third digit shows)."""
    if tiles.mpp is None or info.mpp is None or grid.scale != 1.0 or info.mpp <= tiles.mpp * (1 + WORTH_A_WORD):
        return ()
    words = (
        f"{info.mpp:.4g} µm/px, {info.mpp / tiles.mpp - 1:.1%} coarser than tiles.mpp ({tiles.mpp:g}): its own pixels are taken as they are "
        f"(tiles.mpp_tolerance {tiles.mpp_tolerance:g})."
    )
    return (words,)


def make_grid(info: SlideInfo, tiles: Tiles, name: str) -> tuple[TileGrid, ReadSpec]:
    """The tile grid of an image and the level that it is read from (DESIGN: geometry).

    Raises
    ------
    InputError
        The image has no resolution but `tiles.mpp` asks for one, lacks the level, or is coarser than what is asked for.
    """
    if tiles.level is not None:
        if tiles.level >= len(info.levels):
            levels = f"levels 0 to {len(info.levels) - 1}" if len(info.levels) > 1 else "level 0 only"
            raise InputError(f"tiles.level: {tiles.level}, but {name} has {levels}.")
        scale = info.levels[tiles.level].downsample
        level: int | None = tiles.level
    else:
        assert tiles.mpp is not None, "the config has exactly one of tiles.mpp and tiles.level"
        if info.mpp is None:
            raise InputError(
                f"{name}: the file states no resolution to rely on, and tiles.mpp is {tiles.mpp}.{magnification_words(info.properties)} Write `source: {{mpp: 0.25}}` with the µm per "
                "pixel of level 0, give it in the column `mpp` of a slide list, or use `tiles: {level: 0}`."
            )
        scale = _scale(tiles.mpp, info.mpp, tiles.mpp_tolerance)
        level = level_for_scale(info.levels, scale)
    if level is None:
        assert tiles.mpp is not None, "a level that is asked for by its number exists"
        assert info.mpp is not None, "checked above"
        excess = info.mpp / tiles.mpp - 1
        raise InputError(
            f"{name}: tiles.mpp is {tiles.mpp}, but the finest level has {info.mpp:.4g} µm/px, {excess:.1%} coarser; "
            f"tiles.mpp_tolerance is {tiles.mpp_tolerance:g}. Set tiles.mpp to {info.mpp:.4g} or more."
        )
    grid = TileGrid(info.size, tiles.size, tiles.stride or tiles.size, scale, tiles.edge)
    return grid, ReadSpec(level, info.levels[level].downsample, tiles.size, scale)
