"""What a slide encoder must be given, held against what a run makes: tile encoder, tile size, resolution, overlap, and the cell of each tile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tilestream.config.schema import Config
from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.slides.presets import SLIDE_PRESETS, SlidePreset
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import PlacedGrid, TileGrid

MPP_TOLERANCE = 0.05
"""By how much the resolution of tiles may differ from the authors', as a share."""

Cells = tuple[NDArray[np.int64], NDArray[np.int64]]


def check_slide_encoder(config: Config, dim: int) -> None:
    """Refuse a slide encoder that the tiles of a config were not made for.

    Raises
    ------
    ConfigError
        Naming each thing that differs, with both values.
    """
    for pool in config.pool.every:
        if pool.encodes:
            _check_pool(config, pool, SLIDE_PRESETS[pool.name], dim)


def _check_pool(config: Config, pool: OnePool, preset: SlidePreset, dim: int) -> None:
    if dim != preset.inputs:
        raise ConfigError(
            f"pool.name: {preset.name} takes vectors of {preset.inputs} features, and encoder {config.encoder.name} gives {dim}. "
            f"Set encoder to {preset.tile_encoder}, or choose another pool."
        )
    if pool.tokens and not preset.has_tokens:
        with_tokens = ", ".join(name for name, each in SLIDE_PRESETS.items() if each.has_tokens)
        raise ConfigError(
            f"pool.tokens: true, but {preset.name} makes no tokens of tiles; {with_tokens} do. Leave it out, or choose one of them."
        )
    differing = list(_differences(config, preset))
    if differing and not pool.allow_mismatch:
        raise ConfigError(
            f"pool.name: {preset.name} was made for other tiles: {'; '.join(differing)}. Set them so, or pool.allow_mismatch to true."
        )


def vector_dim(pool: OnePool, dim: int) -> int | None:
    """Channels of a slide's vector made of rows of `dim`, where that can be told without its weights and is another number."""
    return SLIDE_PRESETS[pool.name].dim if pool.encodes else 2 * dim if pool.name == "mean+max" else None


def _differences(config: Config, preset: SlidePreset) -> Iterator[str]:
    """What of a config is not as a slide encoder wants it, in words."""
    encoder, tiles = config.encoder, config.tiles
    if encoder.name != preset.tile_encoder:
        yield f"encoder.name is {encoder.name}, it takes {preset.tile_encoder}"
    elif "output" in encoder.args:
        yield f"encoder.args.output is {encoder.args['output']}, it takes the preset's own"
    if tiles.size != preset.tile:
        yield f"tiles.size is {tiles.size} px, it takes {preset.tile}"
    if tiles.chosen is None and tiles.stride != tiles.size:
        yield f"tiles.stride is {tiles.stride} px of tiles of {tiles.size}, it takes tiles that meet"
    if tiles.mpp is not None and not _serves(preset, tiles.mpp):
        yield f"tiles.mpp is {tiles.mpp:g} µm/px, it takes {preset.mpp:g}"


def _serves(preset: SlidePreset, mpp: float) -> bool:
    return abs(mpp - preset.mpp) <= preset.mpp * MPP_TOLERANCE


def check_slide(config: Config, grid: TileGrid, mpp: float | None, row: NDArray[np.int64], col: NDArray[np.int64], slide: str) -> None:
    """Refuse a slide whose tiles a slide encoder cannot place, or that are of another resolution than it was made for.

    Parameters
    ----------
    config : Config
        With its pool.
    grid : TileGrid
        Of the slide.
    mpp : float, optional
        µm/px of level 0.
    row, col : (n,) int64
        Of the tiles on the grid.
    slide : str
        Its id, for errors.

    Raises
    ------
    InputError
        With both values.
    """
    for pool in config.pool.every:
        if pool.encodes:
            _check_places(pool, grid, mpp, row, col, slide)


def _check_places(pool: OnePool, grid: TileGrid, mpp: float | None, row: NDArray[np.int64], col: NDArray[np.int64], slide: str) -> None:
    preset, allowed = SLIDE_PRESETS[pool.name], pool.allow_mismatch
    tile_mpp = None if mpp is None else mpp * grid.scale
    if not allowed and (tile_mpp is None or not _serves(preset, tile_mpp)):
        there = "an unknown resolution" if tile_mpp is None else f"{tile_mpp:.4g} µm/px"
        raise InputError(
            f"{slide}: its tiles are of {there}, pool {preset.name} takes {preset.mpp:g} µm/px. Set tiles.mpp to {preset.mpp:g} (and source.mpp where the "
            "file does not say), or pool.allow_mismatch to true."
        )
    if isinstance(grid, PlacedGrid) and not allowed:
        _refuse_overlap(grid, row, col, preset, slide)
    if preset.cells is not None:
        _refuse_cells(*tile_cells(grid, row, col), preset, slide, shared=allowed)


def tile_cells(grid: TileGrid, row: NDArray[np.int64], col: NDArray[np.int64]) -> Cells:
    """The cell of each tile: in steps of a tile's side from level-0 (0, 0), from whole numbers, exact however large the slide.

    Of tiles that meet, cells are rows and columns of the grid; level-0 pixels are rounded, and the floor of their quotient may be one less.
    Elsewhere they are the floor of level-0 places, of which half a pixel may have been lost by rounding, over the side.
    """
    if not isinstance(grid, PlacedGrid) and grid.stride == grid.tile:
        return row, col
    y, x = (np.floor((place + 0.5) / grid.l0_extent).astype(np.int64) for place in (grid.l0_y(row), grid.l0_x(col)))
    return y, x


def _refuse_cells(row: NDArray[np.int64], col: NDArray[np.int64], preset: SlidePreset, slide: str, *, shared: bool) -> None:
    """Refuse cells beyond the table, and, unless they may be `shared`, tiles in one cell."""
    assert preset.cells is not None
    beyond = (row >= preset.cells) | (col >= preset.cells) | (row < 0) | (col < 0)
    if beyond.any():
        first = int(np.argmax(beyond))
        raise InputError(
            f"{slide}: {int(beyond.sum())} tiles lie beyond pool {preset.name}'s table of positions, the first in cell row {row[first]}, column {col[first]}: "
            f"it has {preset.cells} a side ({preset.cells * preset.tile * preset.mpp / 1000:g} mm). Choose another pool for this slide."
        )
    _, counts = np.unique(np.stack([row, col]), axis=1, return_counts=True)
    if not shared and (counts > 1).any():
        raise InputError(
            f"{slide}: {int((counts > 1).sum())} cells of pool {preset.name}'s table hold more than one tile, up to {counts.max()}: tiles of "
            f"{preset.tile} px were to lie one a cell. Let tilestream choose tiles that meet, or set pool.allow_mismatch to true."
        )


def _refuse_overlap(grid: TileGrid, row: NDArray[np.int64], col: NDArray[np.int64], preset: SlidePreset, slide: str) -> None:
    """Refuse tiles of which some overlap by more than the rounding of their places."""
    y, x, side = grid.l0_y(row), grid.l0_x(col), grid.l0_extent
    cell: dict[tuple[int, int], int] = {}
    for at in np.lexsort((x, y)).tolist():
        mine = (int(y[at] // side), int(x[at] // side))
        near = (cell.get((mine[0] + dy, mine[1] + dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        for other in near:
            if other is not None and max(abs(int(y[other]) - int(y[at])), abs(int(x[other]) - int(x[at]))) < side - 1:
                raise InputError(
                    f"{slide}: tiles at level-0 y {y[other]}, x {x[other]} and y {y[at]}, x {x[at]} overlap, with sides of {side:g} px; pool {preset.name} takes tiles "
                    "that do not. Choose others, or set pool.allow_mismatch to true."
                )
        cell[mine] = at
