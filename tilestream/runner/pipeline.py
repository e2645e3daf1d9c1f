"""The line of a slide: its stages, one after another, and how its shards are shared out between tasks."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tilestream.config.heads import NO_ENCODER
from tilestream.models.context_spec import ContextSpec
from tilestream.runner.heads.stages import Stage, head_stages, make_streamed
from tilestream.runner.prepare import PreparedSlide, Setup, windows_of
from tilestream.runner.records.state import note_spent
from tilestream.runner.summary import SlideResult
from tilestream.stages.embed_and_mix import embed_and_mix, segments
from tilestream.stages.embed_tiles import embed_tiles, place_tiles
from tilestream.stages.finish_slide import draw_slide, finish_slide, pool_slide, pool_windows, unmade_pools
from tilestream.stages.heads.dense.token_blocks import open_blocks, streamed_heads
from tilestream.stages.mix_context import mix_context
from tilestream.stages.slide_task import SlideTask
from tilestream.stages.token_grid import tokens_a_side
from tilestream.store.folder import Folder
from tilestream.store.layout import WindowGrid
from tilestream.store.slide_store import SlideStore

STREAMED_HALO = 4
"""Tile rows that a run of shards embeds beyond its own for heads over tokens, about: the rest of a row of blocks, and a halo."""


@dataclass
class SlideRun:
    """A slide in work."""

    task: SlideTask
    store: SlideStore
    result: SlideResult
    stages: Iterator[Stage]
    """What is to be done; each once all tasks of the one before it have ended."""
    passes: bool
    """Whether its tasks are many shards long."""
    aside: dict[int, int] = field(default_factory=dict)
    """Tiles that earlier runs embedded of shards that they did not finish, by shard."""
    spent: dict[str, Any] = field(default_factory=dict)
    """What earlier runs kept of what they spent on what is there of it."""
    noted: float = field(default_factory=time.monotonic)
    """When it was last kept what was spent on it."""
    in_work: int = 0
    """Tasks of the present stage that have not ended."""
    given_up: bool = False

    def next_stage(self) -> list[Job]:
        """The jobs of the next stage that has any, and of those that go beside it; none once the slide is finished."""
        jobs: list[Job] = []
        for stage in self.stages:
            jobs += [Job(self, stage, shards) for shards in stage.parts]
            if jobs and not stage.beside:
                break
        self.in_work = len(jobs)
        return jobs

    def note_spent(self, output: Folder, every: float = 0.0) -> None:
        """Keep in the output what was spent on it by now, where that was not done within the last `every` seconds."""
        if time.monotonic() - self.noted >= every:
            note_spent(output, self.result, self.spent)
            self.noted = time.monotonic()


@dataclass(frozen=True)
class Job:
    """A task and where its outcome belongs."""

    slide: SlideRun
    stage: Stage
    shards: range

    @property
    def task(self) -> SlideTask:
        """What its worker is told."""
        return replace(self.slide.task, head=self.stage.head) if self.stage.head else self.slide.task

    @property
    def embeds(self) -> bool:
        """Whether tiles are in work, or what is made of each."""
        return self.stage.work not in (pool_slide, pool_windows, draw_slide, finish_slide)


def stages_of(slide: PreparedSlide, setup: Setup, store: SlideStore, task: SlideTask, committed: Container[int]) -> Iterator[Stage]:
    """What is left to do for a slide whose shards `committed` hold tiles. Each stage may start once all tasks of the one before it have ended."""
    context, every, config = slide.context, range(slide.layout.shards), setup.config
    save, mixes = config.output.save, "" if config.context is None else config.context.stage
    windows = windows_of(slide, setup)
    passing = setup.line.token_windows is not None and _open_windows(windows[:1], store)
    if slide.passes:
        tile_row, _ = task.read_places(store)
        make_streamed(task, store)
        parts = _segments(slide, setup)
        yield Stage(
            embed_and_mix, [part for part in parts if passing or _open(part, store, mixes) or open_blocks(task, store, tile_row, part)]
        )
    else:
        yield Stage(embed_tiles if setup.facts.name != NO_ENCODER else place_tiles, _missing(every, committed))
        if context is not None:
            mixed = store.ledger(mixes)
            whole = [every] if passing or len(mixed) < len(every) else []
            yield Stage(mix_context, _missing(every, mixed) if context.schedule == "halo_shards" else whole)
    # These three read the same rows and know nothing of each other.
    yield Stage(pool_slide, [every] if "slide" in save and unmade_pools(config.pool, store) else [], beside=True)
    yield Stage(pool_windows, [every] if _open_windows(windows, store) else [], beside=True)
    yield Stage(draw_slide, [every] if not store.ledger("picture") else [])
    yield from head_stages(task, store, -(-setup.workers // max(1, setup.slides)))
    yield Stage(finish_slide, [every])


def _open(shards: range, store: SlideStore, mixes: str) -> bool:
    """Whether tiles, or their context where there is one, of one of these shards are missing."""
    done = store.ledger().keys()
    return not set(shards) <= (done & store.ledger(mixes).keys() if mixes else done)


def _open_windows(windows: list[WindowGrid], store: SlideStore) -> bool:
    """Whether rows of windows of these sides are missing."""
    return any(len(store.ledger(f"windows{grid.side}")) < grid.rows for grid in windows)


def _missing(every: range, done: Container[int]) -> list[range]:
    """The shards that are not done, one by one."""
    return [range(shard, shard + 1) for shard in every if shard not in done]


def _segments(slide: PreparedSlide, setup: Setup) -> list[range]:
    """Runs of shards for passes: all at once, or as many as workers can share without computing much twice."""
    chosen, facts, plan = setup.config.context, setup.facts, slide.plan
    halo = 0 if chosen is None else ContextSpec(facts.dim, chosen.depth, chosen.window, chosen.shift).halo
    halo_tiles = -(-halo // tokens_a_side(facts.tokens, plan.grid))
    if streamed_heads(setup.line, slide.layout):
        halo_tiles += STREAMED_HALO
    whole = setup.workers == 1 if slide.context is None else slide.context.schedule != "halo_shards"
    return list(segments(slide.layout, plan.tile_row, halo_tiles, whole=whole))
