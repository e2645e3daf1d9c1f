"""The line of a slide: its stages, one after another, and how its shards are shared out between tasks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from tilestream.models.context_spec import ContextSpec
from tilestream.runner.prepare import PreparedSlide, Setup
from tilestream.stages.embed_and_mix import embed_and_mix, segments
from tilestream.stages.embed_tiles import embed_tiles
from tilestream.stages.finish_slide import draw_slide, finish_slide, pool_slide
from tilestream.stages.mix_context import STAGE, mix_context
from tilestream.stages.slide_task import Report, SlideTask
from tilestream.stages.token_grid import tokens_a_side
from tilestream.store.slide_store import SlideStore


@dataclass(frozen=True)
class Stage:
    """One stage of a slide: what a worker does, and the shards of each of its tasks."""

    work: Callable[[SlideTask, range], Report]
    parts: list[range]


def stages_of(slide: PreparedSlide, setup: Setup, store: SlideStore) -> Iterator[Stage]:
    """What is left to do for a slide. Each stage may start once all tasks of the one before it have ended."""
    context, every = slide.context, range(slide.layout.shards)
    if context is not None and context.one_pass:
        yield Stage(embed_and_mix, _segments(slide, setup))
    else:
        yield Stage(embed_tiles, _missing(every, store.ledger()))
        if context is not None:
            yield Stage(mix_context, _missing(every, store.ledger(STAGE)) if context.schedule == "halo_shards" else [every])
    if not store.dropping:
        yield Stage(pool_slide, [every])
        yield Stage(draw_slide, [every])
    yield Stage(finish_slide, [every])


def _missing(every: range, done: Container[int]) -> list[range]:
    """The shards that are not done, one by one."""
    return [range(shard, shard + 1) for shard in every if shard not in done]


def _segments(slide: PreparedSlide, setup: Setup) -> list[range]:
    """Runs of shards for passes: all at once, or as many as workers can share without computing much twice."""
    chosen, facts, plan = setup.config.context, setup.facts, slide.plan
    assert chosen is not None
    assert slide.context is not None
    halo = ContextSpec(facts.dim, chosen.depth, chosen.window, chosen.shift).halo
    halo_tiles = -(-halo // tokens_a_side(facts.tokens, plan.grid))
    return list(segments(slide.layout, plan.tile_row, halo_tiles, whole=slide.context.schedule != "halo_shards"))
