"""What a run will do to one image, from sizes and a thumbnail alone: level, tiles kept, shards, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.encoders.earth.bands import refuse_other_bands
from tilestream.errors import ConfigError, InputError, TilestreamError
from tilestream.geometry import TileGrid
from tilestream.models.context_spec import heads_refused
from tilestream.sources.base import SegmentGrid, SlideInfo, Source
from tilestream.stages.worker_settings import EncoderFacts
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.picture import png_bytes
from tilestream.tiles.annotations.mask_files import mask_file
from tilestream.tiles.grid import TileSet, choose_tiles
from tilestream.tiles.thumbnail import picture_bytes, read_picture, thumbnail_bytes
from tilestream.tiles.tissue import tissue_bytes


@dataclass(frozen=True, kw_only=True)
class SlidePlan(TileSet):
    """The tiles of one slide of a run."""

    ref: SlideRef
    pieces: SegmentGrid | None
    """The file's own tiles or strips at the level that is read; None where it reads regions only."""
    held_bytes: int
    """What a thread holds while it reads one of them, or a tile's region where there are none."""
    ahead_bytes: int
    """What a list of tiles holds of bytes that were fetched and are not decoded yet, where the image comes over a network."""
    planning_bytes: int
    """What finding the tiles took."""
    picture: bytes
    """The image as people look at it, PNG; empty where its store holds it."""

    @property
    def kept_bytes(self) -> int:
        """What stays of that while the slide is worked on: the thumbnail, the picture, the tissue, and the tiles' numbers, which the driver copies."""
        return self.thumbnail.pixels.nbytes + len(self.picture) + 2 * self.mask.nbytes + len(self) * 200

    @property
    def columns(self) -> TileColumns:
        """What is known of the tiles before a pixel is read."""
        y, x = self.positions.T
        return TileColumns(self.tile_row, self.tile_col, y, x, self.tissue, self.grid.l0_extent)


@dataclass(frozen=True)
class Seen:
    """What is found out of an image without knowing the encoder, by far the most of planning it."""

    tiles: TileSet
    picture: bytes
    """As in `SlidePlan`."""


def see_slide(ref: SlideRef, source: Source, config: Config, stored: TileColumns | None = None) -> Seen:
    """Choose the tiles of one image and make its picture; reads a thumbnail, no full-resolution pixels where a coarser level exists."""
    found = choose_tiles(source, config.tiles, ref.id, mask_file(config, ref), stored)
    return Seen(found, b"" if stored is not None else png_bytes(read_picture(source, found.thumbnail)))


def sees_alone(ref: SlideRef, config: Config) -> bool:
    """Whether the image is all that its tiles come from: neither other files, which may be written meanwhile, nor code of the user's."""
    return config.tiles.chosen is None and config.tiles.tissue.function is None and mask_file(config, ref) is None


def make_slide_plan(
    ref: SlideRef, source: Source, config: Config, facts: EncoderFacts, stored: TileColumns | None = None, seen: Seen | None = None
) -> SlidePlan:
    """Decide what is done to one image, which was `seen` already or is now.

    Raises
    ------
    InputError
        The image cannot serve this config: see `make_grid`, or its resolution or bands do not suit the encoder.
    """
    check_resolution(facts, config, source.info, ref.id)
    if facts.bands and not config.encoder.allow_mismatch:
        refuse_other_bands(facts.bands, source.info.bands, ref.id, facts.name)
    seen = seen or see_slide(ref, source, config, stored)
    found, mask = seen.tiles, mask_file(config, ref)
    if config.tiles.chosen is not None:
        _refuse_placed(found.grid, source.info.mpp, config, facts, ref.id)
    searched = config.tiles.tissue.method != "none" and mask is None
    pieces = source.segment_grid(found.spec.level)
    return SlidePlan(
        **vars(found), ref=ref, pieces=pieces, held_bytes=source.held_bytes(found.spec.level, 0 if pieces else found.spec.cover**2),
        ahead_bytes=source.ahead_bytes(found.spec.level),
        picture=seen.picture,
        planning_bytes=thumbnail_bytes(source) + picture_bytes(source) + tissue_bytes(found.mask.size, searched=searched) + found.candidates * 200,
    )  # fmt: skip


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
    context = config.context
    if context is not None and context.width is None and (refused := heads_refused(context.heads, facts.dim)):
        raise ConfigError(f"context.heads: {refused}")
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


def check_resolution(facts: EncoderFacts, config: Config, info: SlideInfo, name: str) -> None:
    """With `tiles.level`, the resolution is the slide's: refuse one that the encoder was not made for. A level that there is not is refused elsewhere."""
    level = config.tiles.level
    if facts.mpp is None or level is None or info.mpp is None or config.encoder.allow_mismatch or level >= len(info.levels):
        return
    _refuse_mpp(facts, info.mpp * info.levels[level].downsample, f"{name}: level {level}", InputError)


def _refuse_mpp(facts: EncoderFacts, mpp: float, what: str, kind: type[TilestreamError], way_out: str = "") -> None:
    """Refuse `mpp` where the encoder does not serve it; without a `way_out` of its own, tiles.mpp is it."""
    assert facts.mpp is not None
    low, high = facts.mpp_range or (facts.mpp, facts.mpp)
    if not low * 0.95 <= mpp <= high * 1.05:
        served = f"{facts.mpp:.4g}" if facts.mpp_range is None else f"{low:.4g} to {high:.4g}"
        way = way_out or f"Set tiles.mpp to {facts.mpp:.4g}"
        raise kind(f"{what}: {mpp:.4g} µm/px, but encoder {facts.name} was trained at {served}. {way}, or encoder.allow_mismatch to true.")


def make_layout(plan_tiles: int, config: Config, facts: EncoderFacts) -> Layout:
    """Shapes of a slide's arrays. Patch tokens are kept where they are asked for, or where the dense context reads them back."""
    kept = "tokens" in config.output.save or (config.context is not None and config.context.schedule == "dense")
    context_dim = facts.dim if config.context is not None and config.context.kept_as is None else 0
    return Layout(
        plan_tiles,
        facts.dim,
        config.compute.shard_tiles,
        config.output.dtype,
        context_dim,
        facts.tokens if kept and facts.tokens > 1 else 0,
    )
