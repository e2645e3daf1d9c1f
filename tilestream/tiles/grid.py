"""Which squares of an image become tiles, and the level that they are read from."""

from __future__ import annotations

from tilestream.config.schema import Tiles
from tilestream.errors import InputError
from tilestream.geometry import TileGrid, level_for_scale, scale_from_mpp
from tilestream.sources.base import SlideInfo
from tilestream.tiles.read_spec import ReadSpec


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
                f"{name}: the file does not say its resolution, and tiles.mpp is {tiles.mpp}. Write `source: {{mpp: 0.25}}` with the µm per "
                "pixel of level 0, give it in the column `mpp` of a slide list, or use `tiles: {level: 0}`."
            )
        scale = scale_from_mpp(tiles.mpp, info.mpp)
        level = level_for_scale(info.levels, scale)
    if level is None:
        raise InputError(
            f"{name}: tiles.mpp is {tiles.mpp}, but the finest level has {info.mpp:.4g} µm/px. Set tiles.mpp to {info.mpp:.4g} or more."
        )
    grid = TileGrid(info.size, tiles.size, tiles.stride or tiles.size, scale, tiles.edge)
    return grid, ReadSpec(level, info.levels[level].downsample, tiles.size, scale)
