"""The memory of a worker before a pixel is read, as a sum of what each part says of itself, and how a slide's context is passed so that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilestream.buffers import gib
from tilestream.config.schema import Config, Context, Windows
from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.contexts.context_file import context_path
from tilestream.errors import ConfigError
from tilestream.models.context_spec import BAND_BYTES, ContextSpec, choose_schedule
from tilestream.runner.compiling import compiler_bytes
from tilestream.runner.slide_plan import SlidePlan
from tilestream.stages.hardware import peak_memory
from tilestream.stages.shares import IN_FLIGHT, drawing_bytes, plans_here, results_bytes, rows_bytes, shards_open
from tilestream.stages.worker_settings import LANES, EncoderFacts, works_here
from tilestream.store.layout import Layout
from tilestream.tiles.buffer_limits import CIRCULATING, average_bytes, count_open, device_group_bytes, read_batch
from tilestream.tiles.isolation import isolated_bytes, isolated_groups

SLACK = 64 * 1024**2
"""Bytes set aside for what the arithmetic does not name: thread stacks, codec scratch, fragmentation."""

DEVICE_LIBRARIES = 1024**3
"""Host memory of kernels and libraries that CUDA loads when they are first used, after the encoder was measured."""


@dataclass(frozen=True)
class ContextPlan:
    """How the context of one slide is computed."""

    schedule: str
    """dense, row_bands or halo_shards."""
    one_pass: bool
    """Whether tokens go from the encoder into the context without being stored."""
    bytes: int
    """Upper bound of what it holds at once in a worker, its weights included."""

    def __str__(self) -> str:
        return f"{self.schedule} in one pass" if self.one_pass else self.schedule


@dataclass(frozen=True)
class Projection:
    """An upper bound of a worker's resident memory, part by part, in bytes."""

    program: int
    """Interpreter, libraries, the encoder and the activations of one batch, as measured by a worker; what a device loads later, and a compiler."""
    planning: int
    """The thumbnail and what finding tissue takes, where slides are planned by the process that works on them; of a lone slide what stays."""
    tiles: int
    """Tiles that are begun, in both lanes, and those on their way to the encoder."""
    decoding: int
    """What the decoding threads hold, or a child process where reading is isolated."""
    shards: int
    """Embeddings of the shards in work, and of the one that is written its encoded copies."""
    context: int
    """The context's weights and what its schedule holds, where one is configured."""
    heads: int
    """Heads: weights, and what the one at work holds."""
    finishing: int
    """The pool's weights, and the rows, their covariance and the picture that the overview takes."""
    seen: int
    """What the process that planned the slide has taken by then: its total is no less, whatever the other parts say."""
    held: int = 0
    """What the process of a worker held before the run, in the part of the program: it is there, and no limit of the run's is asked to hold it."""

    @property
    def worker(self) -> int:
        """Sum of a worker's parts, with slack."""
        return sum((self.program, self.planning, self.tiles, self.decoding, self.shards, self.context, self.heads, self.finishing, SLACK))

    @property
    def own(self) -> int:
        """A worker's parts without what its process held before."""
        return self.worker - self.held

    @property
    def total(self) -> int:
        """The most that any process of the run takes."""
        return max(self.worker, self.seen)


def project_memory(
    plan: SlidePlan,
    layout: Layout,
    config: Config,
    facts: EncoderFacts,
    workers: int,
    *,
    alone: bool = False,
    heads: int = 0,
    held: int = 0,
) -> tuple[Projection, ContextPlan | None]:
    """Memory of a worker that does this slide, from sizes alone, and the way of its context.

    Of a slide that is the only one of its run, planning is over before the rest begins. `heads` is what heads add to it, `held` what its
    process held before the run.
    """
    here, cuda = works_here(config.compute), facts.device.startswith("cuda")
    tiles, decoding = _reading(plan, layout, config, facts)
    projection = Projection(
        program=facts.peak_bytes
        + (DEVICE_LIBRARIES if cuda else 0)
        + compiler_bytes(facts, len(plan), auto=config.compute.compile == "auto", alone=alone),
        planning=0 if not here else plan.kept_bytes if alone else plans_here(on_device=cuda) * plan.planning_bytes,
        tiles=tiles,
        decoding=decoding,
        shards=shards_open(on_device=cuda) * layout.shard_bytes,
        context=0,
        heads=heads,
        finishing=drawing_bytes(len(plan), facts.dim, facts.threads)
        + rows_bytes(len(plan), facts.dim)
        + sum(_pool_bytes(pool, facts.dim, len(plan), cuda=cuda) for pool in config.pool.every),
        seen=peak_memory(),
        held=held,
    )
    if config.context is None:
        return projection, None
    windows = config.windows if "windows" in config.output.save else None
    context = plan_context(plan, layout, config.context, windows, facts, config.compute.memory_limit - projection.own, workers)
    return replace(projection, context=context.bytes), context


def _pool_bytes(pool: OnePool, dim: int, tiles: int, *, cuda: bool) -> int:
    """What a pool takes, where it learns or encodes: only then torch is needed to say so."""
    if pool.encodes:
        from tilestream.stages.slides.encode import slide_encoder_bytes

        return slide_encoder_bytes(pool, tiles, cuda=cuda)
    if pool.name not in ("gated_attention", "queries"):
        return 0
    from tilestream.models.pooling import pool_bytes

    return pool_bytes(pool.name, pool.weights, dim)


def _reading(plan: SlidePlan, layout: Layout, config: Config, facts: EncoderFacts) -> tuple[int, int]:
    """Bytes of the tiles in both lanes, and of those who decode them."""
    pixel, results = plan.spec.pixel, results_bytes(facts)
    tile, there = plan.spec.tile**2 * pixel.bytes, facts.device.startswith("cuda")
    if there and plan.pieces is not None and not config.compute.isolate and not pixel.bands:  # tiles are put together there
        decoders = min(facts.threads, plan.pieces.rows * plan.pieces.cols)
        return results, LANES * (device_group_bytes(plan.pieces, facts.processes) + plan.ahead_bytes) + decoders * plan.held_bytes
    batch = facts.batch if there else read_batch(facts.batch, plan.spec.tile, pixel)
    circulating = CIRCULATING + (IN_FLIGHT if there else 0)
    lanes: list[int] = []
    for y, x in _lists(plan, layout, config, facts, batch):
        opened = count_open(plan.spec, plan.pieces, plan.info.levels[plan.spec.level].size, y, x, batch=batch, threads=facts.threads)
        batches = min(opened.batches + circulating, -(-len(y) // batch) + 1)
        lanes.append(batches * batch * tile + opened.covers * plan.spec.cover**2 * pixel.bytes)
    lanes.sort(reverse=True)
    lanes += lanes[:1] * (LANES - len(lanes))  # other slides' lists, where this one has too few for all lanes
    decoding = facts.threads * (plan.held_bytes + average_bytes(plan.spec)) + LANES * plan.ahead_bytes
    return sum(lanes[:LANES]) + results, decoding + (LANES * isolated_bytes(plan.info.backend) if config.compute.isolate else 0)


def passes_tokens(config: Config, facts: EncoderFacts, layout: Layout) -> bool:
    """Whether patch tokens go from the encoder into a context or a head without being stored."""
    wanted = config.context is not None or any(head.reads_tokens for head in config.heads.values())
    return wanted and facts.tokens > 1 and not layout.tokens


def _lists(
    plan: SlidePlan, layout: Layout, config: Config, facts: EncoderFacts, batch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The level-0 y and x of each list of tiles that is read at once: a shard's, a band's where tokens are mixed as they come, or a group's."""
    columns, step = plan.columns, layout.shard_tiles
    if passes_tokens(config, facts, layout):
        a_row = int(np.bincount(plan.tile_row, minlength=1).max())
        step = max(a_row, BAND_BYTES // (facts.tokens * facts.dim * 4))
    if config.compute.isolate:
        step = min(step, isolated_groups(batch))
    for start in range(0, len(plan), step):
        yield columns.y[start : start + step], columns.x[start : start + step]


def plan_context(
    plan: SlidePlan, layout: Layout, context: Context, windows: Windows | None, facts: EncoderFacts, budget: int, workers: int
) -> ContextPlan:
    """The schedule of a slide's context, and what it holds; `auto` takes the first that fits into `budget` bytes."""
    spec = ContextSpec(facts.dim, context.depth, context.window, context.shift, width=context.width)
    side = int(facts.tokens**0.5)
    one_pass = facts.tokens > 1 and not layout.tokens
    tokens = len(plan) * facts.tokens
    file = Path(context_path(context.weights)) if context.weights else None
    model = spec.model_bytes + (file.stat().st_size if file is not None and file.is_file() else 0)
    schedule: str = context.schedule
    if windows is not None and facts.tokens > 1:
        if schedule == "halo_shards":
            raise ConfigError(
                "context.schedule: halo_shards, but window vectors of patch tokens need the rows in order. Set it to row_bands."
            )
        if schedule == "auto":
            schedule = "row_bands"
    if schedule == "auto" and one_pass:
        schedule = "row_bands" if workers == 1 else "halo_shards"
    elif schedule == "auto":
        schedule = choose_schedule(spec, tokens, budget - model, workers)
    if schedule == "dense":
        return ContextPlan(schedule, one_pass, model + spec.whole_bytes(tokens))
    a_row = np.bincount(plan.tile_row, minlength=1) * facts.tokens
    if schedule == "row_bands" or one_pass:
        band = max(int(a_row.max()), min(tokens, BAND_BYTES // (facts.dim * 4)))
        held = 0 if windows is None else (windows.sides[0] * plan.grid.cols * side + band) * facts.dim * 4 * 2
        sums = (2 * layout.shard_tiles + band // facts.tokens) * facts.dim * 16
        return ContextPlan(schedule, one_pass, model + spec.state_bytes(plan.grid.cols * side, band) + sums + held)
    starts = np.arange(0, len(plan), layout.shard_tiles)
    ends = np.minimum(starts + layout.shard_tiles, len(plan)) - 1
    halo = -(-(spec.halo + spec.window) // side)
    first = np.searchsorted(plan.tile_row, plan.tile_row[starts] - halo, "left")
    last = np.searchsorted(plan.tile_row, plan.tile_row[ends] + halo, "right")
    return ContextPlan(schedule, one_pass, model + spec.whole_bytes(int((last - first).max(initial=0)) * facts.tokens))


def check_memory(projection: Projection, config: Config, plan: SlidePlan, layout: Layout) -> None:
    """Refuse what does not fit.

    Raises
    ------
    ConfigError
        With the projection, the limit and the way out.
    """
    limit = config.compute.memory_limit
    if projection.own <= limit:
        return
    varying = projection.tiles + projection.shards
    room = limit - (projection.own - varying)
    shard_tiles = int(layout.shard_tiles * room / varying) if room > 0 else 0
    advice = (
        f"Set compute.shard_tiles to {shard_tiles} or less, or raise compute.memory_limit."
        if shard_tiles >= 1
        else f"Raise compute.memory_limit to {gib(projection.own)} or more, or choose a smaller encoder or batch_size."
    )
    raise ConfigError(
        f"compute.memory_limit: a worker on {plan.ref.id} needs {gib(projection.own)} (program and model {gib(projection.program - projection.held)}, "
        f"tiles {gib(projection.tiles + projection.decoding)}, a shard of {min(layout.shard_tiles, len(plan))} tiles "
        f"{gib(projection.shards)}, context {gib(projection.context)}, heads {gib(projection.heads)}, pool and picture {gib(projection.finishing)}), the limit is {gib(limit)}. {advice}"
    )
