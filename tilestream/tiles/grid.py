"""Which squares of an image become tiles, and the level that they are read from."""

from __future__ import annotations

from tilestream.config.schema import Tiles
from tilestream.errors import InputError
from tilestream.geometry import TileGrid, level_for_scale, scale_from_mpp
from tilestream.sources.base import SlideInfo
from tilestream.sources.resolution import magnification_words
from tilestream.tiles.read_spec import ReadSpec

FLOAT_NOISE = 1e-9
"""Relative error of a quotient of two resolutions."""

WORTH_A_WORD = 0.001
"""Relative difference of resolutions below which nobody is told."""


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
                f"{name}: the file does not say its resolution, and tiles.mpp is {tiles.mpp}.{magnification_words(info.properties)} Write `source: {{mpp: 0.25}}` with the µm per "
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
