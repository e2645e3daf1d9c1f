"""From a config to slides that can be worked on: the encoder is learned once, then each slide is opened, planned, checked and projected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.runner.cohort import source_options
from tilestream.runner.contexts.fitted_context import check_context_resolution, check_fitted_context, context_notes
from tilestream.runner.engines.engine import Engine
from tilestream.runner.heads.fitting import check_head_resolution, check_heads, precision_notes
from tilestream.runner.memory import ContextPlan, Projection, check_memory, passes_tokens, project_memory
from tilestream.runner.recipe import Recipes
from tilestream.runner.slide_plan import Seen, SlidePlan, check_encoder, make_layout, make_slide_plan
from tilestream.sources.base import ImageAddress, Source
from tilestream.stages.clock import Wall
from tilestream.stages.hardware import describe_device
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.slide_task import LineSettings, SlideTask
from tilestream.stages.slides.contract import check_slide, check_slide_encoder, vector_dim
from tilestream.stages.worker_settings import Digests, EncoderFacts, WorkerSettings, model_address, untrained_parts, worker_settings
from tilestream.store.layout import Layout, WindowGrid
from tilestream.store.slide_store import SlideStore


@dataclass(frozen=True)
class Setup:
    """What holds for all slides of a config, once the encoder is known."""

    config: Config
    settings: WorkerSettings
    facts: EncoderFacts
    workers: int
    slides: int
    """Slides of the run: while one is worked on, the next is planned."""
    heads: tuple[HeadFacts, ...] = ()
    stored: bool = False
    """Whether the encoder was not built, for every slide lacks answers from stored rows only."""
    weights: Digests = ()
    """The files of weights of stages after the tiles."""
    held: int = 0
    """Bytes that the caller's process held before the run, where slides are worked on in it."""
    begins_compiled: Callable[[int, int], bool] = lambda tiles, workers: False  # noqa: ARG005
    """Whether a slide of so many tiles begins compiled, on so many workers."""

    @property
    def notes(self) -> list[str]:
        """What a person should know of how models run."""
        own = [f"head {head.name}: {note}" for head in self.heads for note in head.notes]
        return [*self.facts.notes, *own, *context_notes(self.facts, self.config), *precision_notes(self.heads, self.facts)]

    @property
    def untrained(self) -> list[str]:
        """The parts of the line whose weights are random."""
        return [*untrained_parts(self.config, self.facts), *(f"head {head.name}" for head in self.heads if head.untrained)]

    @property
    def line(self) -> LineSettings:
        """What every task carries of it."""
        config = self.config
        fail = config.on_error.tile == "fail"
        return LineSettings(
            self.settings, self.facts, config.context, config.pool, config.windows, config.output.save, fail, self.heads, self.weights
        )


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that was opened, planned, checked and projected; no pixel but the thumbnail's was read."""

    plan: SlidePlan
    layout: Layout
    projection: Projection
    context: ContextPlan | None
    """How its context is passed, where one is configured."""
    heads: dict[str, int]
    """What each head leaves in its store, bytes before compression."""
    passes: bool
    """Whether patch tokens pass by once, from the encoder into its context or heads."""

    @property
    def output_bytes(self) -> int:
        """Uncompressed size of its store, in bytes."""
        return self.layout.bytes + sum(self.heads.values())

    def task(self, setup: Setup, store: SlideStore) -> SlideTask:
        """What its stages are told, with the address of its store and the token under which they may write to it."""
        compiled = setup.settings.compile is not False and bool((store.attributes or {}).get("compiled"))
        task = _make_task(self.plan, setup, self.context.schedule if self.context else "", store.folder.address, store.token)
        return replace(task, compiled=compiled)


def _make_task(plan: SlidePlan, setup: Setup, schedule: str, address: str, token: str | None) -> SlideTask:
    image = ImageAddress(plan.ref.address, source_options(setup.config, plan.ref), plan.info.fingerprint)
    return SlideTask(plan.ref.id, image, address, token, plan.spec, plan.grid, plan.info.mpp, schedule, setup.line, levels=plan.info.levels)


def set_up_on(engine: Engine, config: Config, slides: int, recipes: Recipes, stored: EncoderFacts | None, wall: Wall) -> Setup:
    """`set_up` by the workers of an engine, all of which then have their encoders; those that come later get one before they count."""
    from tilestream.stages.embed_tiles import describe_encoder

    settings = worker_settings(config)
    wall.mark("imports")
    if stored is None and config.compute.scheduler.kind == "local" and not engine.in_process:
        engine.call_all(describe_encoder, settings)  # alike as they are, they settle alike what is open: none waits for another's encoder
    setup = set_up(config, settings, engine.call, engine.workers, slides, recipes, stored)
    if stored is None:  # all workers build their encoders now, so that none does while others wait for its first shard
        engine.call_all(describe_encoder, setup.settings)
    wall.mark("encoder")
    return replace(setup, workers=engine.workers)


def set_up(
    config: Config,
    settings: WorkerSettings,
    call: Callable[[Callable[[Any], Any], Any], Any],
    workers: int,
    slides: int,
    recipes: Recipes,
    stored: EncoderFacts | None = None,
) -> Setup:
    """Learn the encoder and the heads from a worker, by whom `call` lets a function be called, and refuse what no slide can mend.

    Where every row is `stored`, the encoder is what the stores say of it. What the config leaves open is settled by that worker, so that it does not matter which of them does a shard.

    Raises
    ------
    ConfigError
        The encoder, the context on top of it, or a head does not suit the config.
    """
    if stored is None:
        from tilestream.stages.embed_tiles import describe_encoder  # here and below: a plan without such parts needs no torch

        facts, pinned = call(describe_encoder, settings)
    else:
        facts, pinned = replace(stored, device=call(describe_device, settings.device), threads=settings.threads), settings
    check_encoder(facts, config)
    check_fitted_context(facts, config)
    check_slide_encoder(config, facts.dim)
    for pool in config.pool.every:
        if pool.encodes:
            from tilestream.stages.slides.encode import try_slide_encoder

            call(try_slide_encoder, pool)
    if config.context is not None:
        from tilestream.stages.mix_context import build_context

        build_context(config.context, facts.dim)
    heads = learn_heads(config, facts, pinned, call, recipes) if config.heads else ()
    recipes.refuse_changed(None)
    return Setup(config, pinned, facts, workers, slides, heads, stored is not None, recipes.weights)


def learn_heads(
    config: Config, facts: EncoderFacts, settings: WorkerSettings, call: Callable[[Callable[[Any], Any], Any], Any], recipes: Recipes
) -> tuple[HeadFacts, ...]:
    """What a worker says of the heads of a config, which are refused where they do not fit it."""
    from tilestream.stages.heads.describe import HeadsAsked, describe_heads

    named = tuple((name, head.model_copy(update={"model": model_address(head.model)})) for name, head in config.heads.items())
    asked = HeadsAsked(named, facts.dim, config.tiles.size, settings.device, facts.batch, facts.tokens, vector_dim(config.pool, facts.dim))
    heads: tuple[HeadFacts, ...] = call(describe_heads, asked)
    check_heads(heads, facts, config, recipes.context_sha256)
    return heads


def prepare_slide(ref: SlideRef, source: Source, setup: Setup, stored: SlideStore | None = None, seen: Seen | None = None) -> PreparedSlide:
    """Plan an open slide and project the memory of a worker on it.

    `stored` is its output, where that was begun earlier: its tiles are those of the slide, and its shapes stay. `seen` is what was found out
    of the same image already.

    Raises
    ------
    InputError
        The slide cannot serve this config.
    ConfigError
        Its tiles do not suit the context, or a worker's memory would exceed the limit.
    """
    config, facts = setup.config, setup.facts
    plan = make_slide_plan(ref, source, config, facts, stored.columns if stored is not None else None, seen)
    layout = make_layout(len(plan), config, facts)
    if stored is not None:
        there = stored.layout
        layout = replace(there, context_dim=layout.context_dim or there.context_dim)
    if config.context is not None:
        from tilestream.stages.token_grid import tokens_a_side

        tokens_a_side(facts.tokens, plan.grid)
    if config.tiles.mpp is None and plan.info.mpp is not None:
        resolution = plan.info.mpp * plan.grid.scale
        what = f"tiles.from of {ref.id} have" if config.tiles.level is None else f"level {config.tiles.level} of {ref.id} has"
        check_context_resolution(config, resolution, what)
        check_head_resolution(setup.heads, resolution, what)
    check_slide(config, plan.grid, plan.info.mpp, plan.tile_row, plan.tile_col, ref.id)
    task = _make_task(plan, setup, "", "", None)
    taken, left = _heads_take(task, layout) if setup.heads else (0, {})
    projection, context = project_memory(plan, layout, config, facts, setup.workers, alone=setup.slides == 1, heads=taken, held=setup.held)
    if any(head.head.input == "pixels" for head in setup.heads):  # who reads for a head has buffers of its own
        projection = replace(projection, heads=projection.heads + projection.tiles + projection.decoding)
    check_memory(projection, config, plan, layout)
    return PreparedSlide(plan, layout, projection, context, left, passes_tokens(config, facts, layout))


def _heads_take(task: SlideTask, layout: Layout) -> tuple[int, dict[str, int]]:
    """Bytes that heads add to a worker, and that each leaves in the slide's store."""
    from tilestream.runner.heads.stages import heads_memory, heads_output

    return heads_memory(task, layout), heads_output(task, layout)


def windows_of(slide: PreparedSlide, setup: Setup) -> list[WindowGrid]:
    """The windows whose vectors are wanted."""
    config, grid = setup.config, slide.plan.grid
    if "windows" not in config.output.save:
        return []
    from tilestream.stages.region_vectors import window_grids
    from tilestream.stages.token_grid import tokens_a_side

    return window_grids(config.windows, grid, tokens_a_side(setup.facts.tokens, grid), setup.facts.dim)
