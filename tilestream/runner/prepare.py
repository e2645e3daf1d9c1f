"""From a config to slides that can be worked on: the encoder is learned once, then each slide is opened, planned, checked and projected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.runner.cohort import source_options
from tilestream.runner.memory import ContextPlan, Projection, check_memory, project_memory
from tilestream.runner.slide_plan import SlidePlan, check_encoder, make_layout, make_slide_plan
from tilestream.sources.base import ImageAddress, Source
from tilestream.stages.mix_context import build_context
from tilestream.stages.region_vectors import window_grids
from tilestream.stages.slide_task import LineSettings, SlideTask
from tilestream.stages.token_grid import tokens_a_side
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings
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

    @property
    def line(self) -> LineSettings:
        """What every task carries of it."""
        config = self.config
        fail = config.on_error.tile == "fail"
        return LineSettings(self.settings, self.facts, config.context, config.pool, config.windows, config.output.save, fail)


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that was opened, planned, checked and projected; no pixel but the thumbnail's was read."""

    plan: SlidePlan
    layout: Layout
    projection: Projection
    context: ContextPlan | None
    """How its context is passed, where one is configured."""

    def task(self, setup: Setup, store: SlideStore) -> SlideTask:
        """What its stages are told, with the address of its store and the token under which they may write to it."""
        plan = self.plan
        image = ImageAddress(plan.ref.address, source_options(setup.config, plan.ref), plan.info.fingerprint)
        schedule = self.context.schedule if self.context else ""
        return SlideTask(plan.ref.id, image, store.folder.address, store.token, plan.spec, plan.grid, plan.info.mpp, schedule, setup.line)


def set_up(
    config: Config,
    settings: WorkerSettings,
    describe: Callable[[WorkerSettings], tuple[EncoderFacts, WorkerSettings]],
    workers: int,
    slides: int,
) -> Setup:
    """Learn the encoder from a worker, and refuse what no slide can mend.

    What the config leaves open is settled by that worker, so that it does not matter which of them does a shard.

    Raises
    ------
    ConfigError
        The encoder, or the context on top of it, does not suit the config.
    """
    facts, pinned = describe(settings)
    check_encoder(facts, config)
    if config.context is not None:
        build_context(config.context, facts.dim)
    return Setup(config, pinned, facts, workers, slides)


def prepare_slide(ref: SlideRef, source: Source, setup: Setup, stored: SlideStore | None = None) -> PreparedSlide:
    """Plan an open slide and project the memory of a worker on it.

    `stored` is its output, where that was begun earlier: its tiles are those of the slide, and its shapes stay.

    Raises
    ------
    InputError
        The slide cannot serve this config.
    ConfigError
        Its tiles do not suit the context, or a worker's memory would exceed the limit.
    """
    config, facts = setup.config, setup.facts
    plan = make_slide_plan(ref, source, config, facts, stored.columns if stored is not None else None)
    layout = make_layout(len(plan), config, facts)
    if stored is not None:
        there = stored.layout
        layout = replace(there, context_dim=layout.context_dim or there.context_dim)
    if config.context is not None:
        tokens_a_side(facts.tokens, plan.grid)
    projection, context = project_memory(plan, layout, config, facts, setup.workers, alone=setup.slides == 1)
    check_memory(projection, config, plan)
    return PreparedSlide(plan, layout, projection, context)


def windows_of(slide: PreparedSlide, setup: Setup) -> list[WindowGrid]:
    """The windows whose vectors are wanted."""
    config, grid = setup.config, slide.plan.grid
    if "windows" not in config.output.save:
        return []
    return window_grids(config.windows, grid, tokens_a_side(setup.facts.tokens, grid), setup.facts.dim)
