"""What a run will do to one image, from sizes and a thumbnail alone: level, tiles kept, shards, bytes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.errors import ConfigError, InputError, TilestreamError, user_code
from tilestream.geometry import PlacedGrid, TileGrid, level_for_scale
from tilestream.sources.base import SegmentGrid, SlideInfo, Source, SourceOptions
from tilestream.stages.worker_settings import EncoderFacts
from tilestream.store.layout import Layout, TileColumns
from tilestream.tiles.annotations.mask_files import bounds_corner, mask_file
from tilestream.tiles.coords import find_file, place_tiles
from tilestream.tiles.grid import coarser_than_asked, make_grid
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.thumbnail import Thumbnail, read_thumbnail
from tilestream.tiles.tissue import find_tissue, tile_fractions


@dataclass(frozen=True)
class SlidePlan:
    """The tiles of one image and how they are read. Small: no pixels but the thumbnail's."""

    ref: SlideRef
    info: SlideInfo
    grid: TileGrid
    spec: ReadSpec
    pieces: SegmentGrid | None
    """The file's own tiles or strips at the level that is read; None where it reads regions only."""
    tile_row: NDArray[np.int64]
    """(n,) kept tiles, row-major."""
    tile_col: NDArray[np.int64]
    tissue: NDArray[np.float32]
    """(n,) fraction of each kept tile that is tissue."""
    thumbnail: Thumbnail
    mask: NDArray[np.bool_]
    """(h, w) tissue, on the thumbnail's pixels."""
    warnings: tuple[str, ...] = ()
    """What a person should know of the image and of how it is read: the source's warnings, and the plan's own."""

    @property
    def tiles(self) -> int:
        """Number of kept tiles: rows of every output array."""
        return len(self.tile_row)

    @property
    def candidates(self) -> int:
        """Number of tiles before tissue was looked at."""
        if isinstance(self.grid, PlacedGrid):
            return self.tiles
        return self.grid.rows * self.grid.cols if self.grid.edge == "pad" else len(self.grid.candidates()[0])

    @property
    def padded(self) -> NDArray[np.bool_]:
        """(n,) whether a tile hangs over the image."""
        return self.grid.overhangs(self.tile_row, self.tile_col)

    @property
    def columns(self) -> TileColumns:
        """What is known of the tiles before a pixel is read."""
        y, x = self.grid.l0_y(self.tile_row), self.grid.l0_x(self.tile_col)
        return TileColumns(self.tile_row, self.tile_col, y, x, self.tissue, self.grid.l0_extent)

    @property
    def stride_um(self) -> float | None:
        """Step between tiles in µm; None where the image has no scale."""
        return None if self.info.mpp is None else self.grid.stride * self.grid.scale * self.info.mpp


def source_options(config: Config, ref: SlideRef) -> SourceOptions:
    """What the config and the slide list say of a file; a resolution in the list goes before the config's."""
    chosen = config.source
    return SourceOptions(
        backend=chosen.backend, z=chosen.z, t=chosen.t, channels=chosen.channels, window=chosen.window, scene=chosen.scene,
        mpp=ref.mpp if ref.mpp is not None else chosen.mpp, reduced=config.tiles.fast_downsample and config.tiles.level is None, icc=chosen.icc,
    )  # fmt: skip


def make_slide_plan(ref: SlideRef, source: Source, config: Config, facts: EncoderFacts) -> SlidePlan:
    """Decide what is done to one image; reads a thumbnail, no full-resolution pixels where a coarser level exists.

    Raises
    ------
    InputError
        The image cannot serve this config: see `make_grid`, or its resolution does not suit the encoder.
    """
    info = source.info
    chosen = config.tiles.chosen
    check_resolution(facts, config, info.mpp, ref.id)
    if chosen is None:
        grid, spec = make_grid(info, config.tiles, ref.id)
        tile_row, tile_col = grid.candidates()
    else:
        grid, tile_row, tile_col = place_tiles(find_file(chosen, ref.id), info, config.tiles.size, ref.id)
        spec = _placed_spec(grid, info, ref.id)
        _refuse_placed(grid, info.mpp, config, facts, ref.id)
    warnings = info.warnings + coarser_than_asked(info, grid, config.tiles)
    tissue, file = config.tiles.tissue, mask_file(config, ref)
    thumbnail = read_thumbnail(source)
    um_per_px = None if info.mpp is None else info.mpp * thumbnail.downsample
    with user_code(f"tiles.tissue.function: {tissue.function}", ref.id) if tissue.method == "function" else nullcontext():
        found = find_tissue(thumbnail, tissue, um_per_px, file=file, corner=bounds_corner(config, info))
    fraction = tile_fractions(found.mask, thumbnail.downsample, grid, tile_row, tile_col)
    if (tissue.method != "none" or file is not None) and chosen is None:
        keep = (fraction >= tissue.min_fraction) & (fraction > 0)
        tile_row, tile_col, fraction = tile_row[keep], tile_col[keep], fraction[keep]
    if thumbnail.unreadable:
        warnings += (f"{thumbnail.unreadable / found.mask.size:.1%} of the thumbnail cannot be read; tiles there are kept.",)
    pieces = source.segment_grid(spec.level)
    return SlidePlan(ref, info, grid, spec, pieces, tile_row, tile_col, fraction, thumbnail, found.mask, warnings + found.warnings)


def _placed_spec(grid: TileGrid, info: SlideInfo, name: str) -> ReadSpec:
    """How tiles that a file gave are read."""
    level = level_for_scale(info.levels, grid.scale)
    if level is None:
        raise InputError(
            f"{name}: tiles.from has tiles of {grid.l0_extent:g} level-0 px, and tiles.size is {grid.tile}: pixels are averaged, never invented. "
            f"Set tiles.size to {math.floor(grid.l0_extent)} or less."
        )
    return ReadSpec(level, info.levels[level].downsample, grid.tile, grid.scale)


def _refuse_placed(grid: TileGrid, mpp: float | None, config: Config, facts: EncoderFacts, name: str) -> None:
    """Refuse what places of a file cannot serve: a resolution that the encoder was not made for, neighbours where there is no lattice."""
    if facts.mpp is not None and mpp is not None and not config.encoder.allow_mismatch:
        _refuse_mpp(facts, mpp * grid.scale, f"{name}: tiles.from, tiles.size {grid.tile}", InputError, "Set tiles.size so that they meet")
    if not grid.regular and (config.context is not None or "windows" in config.output.save):
        what = "context" if config.context is not None else "output.save: windows"
        raise InputError(
            f"{name}: {what} needs tiles on a lattice, and those of {config.tiles.chosen} lie on none. Leave it out for this slide, "
            "or let tilestream choose the tiles."
        )


def check_encoder(facts: EncoderFacts, config: Config) -> None:
    """Refuse a tile size or resolution that the encoder was not made for, unless `encoder.allow_mismatch`.

    Raises
    ------
    ConfigError
        With both values.
    """
    if "windows" in config.output.save and facts.tokens > 1 and config.context is None:
        raise ConfigError(
            f"output.save: windows, but {facts.name} gives patch tokens and there is no context to pass them through. Add a context, or leave windows out."
        )
    if config.context is not None and facts.dim % config.context.heads:
        raise ConfigError(f"context.heads: {config.context.heads} does not divide the encoder's dimension, {facts.dim}.")
    if config.encoder.allow_mismatch:
        return
    brought = facts.takes_larger_tiles and facts.tile_size is not None and config.tiles.size > facts.tile_size
    if facts.tile_size is not None and facts.tile_size != config.tiles.size and not brought:
        raise ConfigError(
            f"tiles.size: {config.tiles.size}, but encoder {facts.name} takes tiles of {facts.tile_size} px. "
            f"Set tiles.size to {facts.tile_size}, or encoder.allow_mismatch to true."
        )
    if facts.mpp is not None and config.tiles.mpp is not None:
        _refuse_mpp(facts, config.tiles.mpp, "tiles.mpp", ConfigError)


def check_resolution(facts: EncoderFacts, config: Config, mpp: float | None, name: str) -> None:
    """With `tiles.level`, the resolution is the slide's: refuse one that the encoder was not made for."""
    if facts.mpp is not None and config.tiles.level == 0 and mpp is not None and not config.encoder.allow_mismatch:
        _refuse_mpp(facts, mpp, f"{name}: level 0", InputError)


def _refuse_mpp(facts: EncoderFacts, mpp: float, what: str, kind: type[TilestreamError], way_out: str = "") -> None:
    """Refuse `mpp` where the encoder does not serve it; without a `way_out` of its own, tiles.mpp is it."""
    assert facts.mpp is not None
    low, high = facts.mpp_range or (facts.mpp * 0.95, facts.mpp * 1.05)
    if not low <= mpp <= high:
        served = f"{facts.mpp:.4g}" if facts.mpp_range is None else f"{low:.4g} to {high:.4g}"
        way = way_out or f"Set tiles.mpp to {facts.mpp:.4g}"
        raise kind(f"{what}: {mpp:.4g} µm/px, but encoder {facts.name} was trained at {served}. {way}, or encoder.allow_mismatch to true.")


def make_layout(plan_tiles: int, config: Config, facts: EncoderFacts) -> Layout:
    """Shapes of a slide's arrays. Patch tokens are kept where they are asked for, or where the dense context reads them back."""
    kept = "tokens" in config.output.save or (config.context is not None and config.context.schedule == "dense")
    context_dim = facts.dim if config.context is not None else 0
    return Layout(
        plan_tiles,
        facts.dim,
        config.compute.shard_tiles,
        config.output.dtype,
        context_dim,
        facts.tokens if kept and facts.tokens > 1 else 0,
    )
