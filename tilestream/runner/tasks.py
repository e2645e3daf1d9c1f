"""What is to be done for one slide, step by step, as tasks that workers understand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tilestream.config.schema import Config, Windows
from tilestream.geometry import PlacedGrid, TileGrid
from tilestream.models.context_spec import ContextSpec
from tilestream.runner.memory import ContextPlan
from tilestream.runner.slide_plan import SlidePlan, source_options
from tilestream.sources.base import SlideInfo
from tilestream.stages.embed_and_mix import PassTask, embed_and_mix, segments
from tilestream.stages.embed_tiles import ShardTask, embed_shard
from tilestream.stages.finish_slide import FinishTask, finish_slide, png_bytes
from tilestream.stages.mix_context import STAGE, ContextTask, mix_slide
from tilestream.stages.region_vectors import window_grids
from tilestream.stages.token_grid import tokens_a_side
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings
from tilestream.store.layout import Layout
from tilestream.store.slide_store import THUMBNAIL, TISSUE, SlideStore

Step = tuple[Callable[[Any], Any], Any]
"""A function that a worker calls, and its task."""


class Steps:
    """Makes the tasks of slides; one for a run."""

    def __init__(self, config: Config, facts: EncoderFacts, settings: WorkerSettings) -> None:
        self.config, self.facts, self.settings = config, facts, settings

    def create(self, store: SlideStore, plan: SlidePlan, layout: Layout, recipe: dict[str, Any]) -> None:
        """Make a slide's store ready to be filled."""
        info = plan.info
        source = {"address": plan.ref.address, "backend": info.backend, "fingerprint": info.fingerprint, "mpp": info.mpp, "mpp_source": info.mpp_source,
                  "height": info.size.height, "width": info.size.width, "level": plan.spec.level, "downsample": plan.spec.downsample,
                  "scale": plan.grid.scale, "resampled": plan.spec.resampled, "vendor": info.vendor, "warnings": list(plan.warnings),
                  "thumbnail_downsample": plan.thumbnail.downsample, "bounds": _bounds(info),
                  "icc_profile": info.properties.get("icc_profile", "none"), "icc": info.properties.get("icc", "ignored"), **_placed(plan.grid)}  # fmt: skip
        uns: dict[str, Any] = {"spatial_unit": "px of level 0", "slide": plan.ref.id}
        if info.mpp is not None:
            uns["mpp"] = float(info.mpp)
        pictures = {THUMBNAIL: png_bytes(plan.thumbnail.pixels), TISSUE: png_bytes(plan.mask)}
        windows = (
            window_grids(self.config.windows, plan.grid, tokens_a_side(self.facts.tokens, plan.grid), self.facts.dim)
            if "windows" in self.config.output.save
            else []
        )
        store.create(layout, plan.columns, {"recipe": recipe, "source": source}, uns=uns, objects=pictures, windows=windows)

    def of(self, plan: SlidePlan, store: SlideStore, layout: Layout, context: ContextPlan | None) -> Iterator[list[Step]]:
        """What is left to do for a slide: tiles, context, finish; or tiles and context at once, finish.

        Each list may start once all of the one before it has ended.
        """
        embedded, mixed = store.ledger(), store.ledger(STAGE)
        shards = range(layout.shards)
        if context and context.one_pass:
            whole = context.schedule != "halo_shards"
            halo = -(-self._spec().halo // tokens_a_side(self.facts.tokens, plan.grid))
            runs = segments(layout, plan.tile_row, halo, whole=whole)
            yield [(embed_and_mix, self._pass_task(plan, store, *run)) for run in runs]
        else:
            yield [(embed_shard, self._shard_task(plan, store, layout, shard)) for shard in shards if shard not in embedded]
            if context and context.schedule == "halo_shards":
                yield [(mix_slide, self._context_task(plan, store, context, shard)) for shard in shards if shard not in mixed]
            elif context:
                yield [(mix_slide, self._context_task(plan, store, context, None))]
        yield [(finish_slide, self._finish_task(plan, store))]

    def _spec(self) -> ContextSpec:
        chosen = self.config.context
        assert chosen is not None
        return ContextSpec(self.facts.dim, chosen.depth, chosen.window, chosen.shift)

    def _token_windows(self) -> Windows | None:
        """The window vectors that come of patch tokens, which pass by once; those of tile vectors are made of what is stored."""
        return self.config.windows if "windows" in self.config.output.save and self.facts.tokens > 1 else None

    def _shard_task(self, plan: SlidePlan, store: SlideStore, layout: Layout, shard: int) -> ShardTask:
        rows = layout.rows(shard)
        y, x = plan.grid.l0_y(plan.tile_row[rows]), plan.grid.l0_x(plan.tile_col[rows])
        return ShardTask(
            slide=plan.ref.id, address=plan.ref.address, options=source_options(self.config, plan.ref), fingerprint=plan.info.fingerprint,
            spec=plan.spec, l0_y=y, l0_x=x, padded=plan.grid.overhangs(plan.tile_row[rows], plan.tile_col[rows]), shard=shard,
            store=store.folder.address, settings=self.settings, fail_tiles=self.config.on_error.tile == "fail",
        )  # fmt: skip

    def _pass_task(self, plan: SlidePlan, store: SlideStore, first: int, end: int) -> PassTask:
        assert self.config.context is not None
        return PassTask(
            slide=plan.ref.id, address=plan.ref.address, options=source_options(self.config, plan.ref), fingerprint=plan.info.fingerprint,
            spec=plan.spec, grid=plan.grid, stride_um=plan.stride_um, tokens=self.facts.tokens, first=first, end=end, store=store.folder.address,
            settings=self.settings, context=self.config.context, precision=self.facts.precision, windows=self._token_windows(), fail_tiles=self.config.on_error.tile == "fail",
        )  # fmt: skip

    def _context_task(self, plan: SlidePlan, store: SlideStore, context: ContextPlan, shard: int | None) -> ContextTask:
        assert self.config.context is not None
        return ContextTask(
            slide=plan.ref.id, store=store.folder.address, grid=plan.grid, stride_um=plan.stride_um, context=self.config.context,
            device=self.config.compute.device, precision=self.facts.precision, schedule=context.schedule, shard=shard,
            windows=self._token_windows(),
        )  # fmt: skip

    def _finish_task(self, plan: SlidePlan, store: SlideStore) -> FinishTask:
        mpp = "no scale" if plan.info.mpp is None else f"{plan.info.mpp * plan.grid.scale:.3g} um/px"
        return FinishTask(
            slide=plan.ref.id, store=store.folder.address, grid=plan.grid, tile_row=plan.tile_row, tile_col=plan.tile_col,
            context=self.config.context is not None, pool=self.config.pool, save=self.config.output.save, windows=self.config.windows,
            vectors=self.facts.tokens == 1, threads=self.settings.threads,
            title=f"{plan.ref.id}: {plan.info.size.width} x {plan.info.size.height} px, tiles of {plan.grid.tile} px at {mpp}, {self.facts.name}",
        )  # fmt: skip


def _bounds(info: SlideInfo) -> dict[str, str] | None:
    """OpenSlide's bounds of the part that was scanned, level-0 px; empty where it has none, None where OpenSlide did not read it."""
    if info.backend != "openslide":
        return None
    return {name: value for name, value in info.properties.items() if name.startswith("openslide.bounds-")}


def _placed(grid: TileGrid) -> dict[str, Any]:
    """What a reader must know of places that a file gave: the step between tiles, px at the target resolution, and where tile (0, 0) lies."""
    if not isinstance(grid, PlacedGrid):
        return {}
    offset = list(grid.l0_offset)
    return {"grid": {"regular": grid.regular, "stride": grid.stride, "l0_offset": offset, "rows": grid.rows, "cols": grid.cols}}
