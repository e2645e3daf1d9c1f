"""The memory of a worker before a pixel is read, and how the context of a slide is passed so that it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tilestream.config.schema import Config, Context, Windows
from tilestream.errors import ConfigError
from tilestream.models.context_spec import BAND_BYTES, ContextSpec, choose_schedule
from tilestream.runner.slide_plan import SlidePlan
from tilestream.stages.worker_settings import LANES, EncoderFacts
from tilestream.store.layout import Layout
from tilestream.tiles.read_spec import GROUPS_IN_WORK, READ_TILES, group_pieces, host_group, job_pieces, jobs_ahead, pending_tiles

SLACK = 64 * 1024**2
"""Bytes set aside for what the arithmetic does not name: thread stacks, codec scratch, fragmentation."""


@dataclass(frozen=True)
class ContextPlan:
    """How the context of one slide is computed."""

    schedule: str
    """dense, row_bands or halo_shards."""
    one_pass: bool
    """Whether tokens go from the encoder into the context without being stored."""
    bytes: int
    """Upper bound of what it holds at once in a worker."""

    def __str__(self) -> str:
        return f"{self.schedule} in one pass" if self.one_pass else self.schedule


@dataclass(frozen=True)
class Projection:
    """An upper bound of a worker's resident memory, part by part, in bytes."""

    program: int
    """Interpreter, libraries, weights and the activations of one batch, as measured before any pixel."""
    reading: int
    """Tiles open at once in both lanes."""
    batches: int
    """Batches on their way to the encoder."""
    shard: int
    """Embeddings of the shards in work, with their encoded copy."""
    context: int
    """What the context holds at once, where one is configured."""
    thumbnail: int
    """The thumbnail, its mask and what finding tissue takes: 24 bytes a thumbnail pixel; and the tiles' numbers, 200 bytes a tile."""

    finishing: int
    """The covariance of the embeddings, from which the overview's colours come."""

    @property
    def total(self) -> int:
        """Sum of the parts, with slack."""
        return self.program + self.reading + self.batches + self.shard + self.context + self.thumbnail + self.finishing + SLACK


def _scattered(plan: SlidePlan, shard_tiles: int, regular: int, threads: int) -> int:
    """Upper bound of the tiles open at once where they lie on no lattice: those that begin within reach of the pieces in work, counted."""
    if plan.pieces is None:
        return regular
    side, spec = max(plan.pieces.height, plan.pieces.width), plan.spec
    most = 1
    for start in range(0, plan.tiles, shard_tiles):
        part = slice(start, start + shard_tiles)
        places = [spec.px_origins(places[part]) for places in (plan.columns.y, plan.columns.x)]
        short = max(1, int(min(np.ptp(px) for px in places) // side))  # pieces of a line
        lines = 2 + -(-(jobs_ahead(spec, plan.pieces, threads) + 1) * job_pieces(spec, plan.pieces) // short)
        for px in places:
            begin = np.sort(px)
            most = max(most, int((np.searchsorted(begin, begin + spec.cover + lines * side, "right") - np.arange(len(begin))).max()))
    return min(shard_tiles, most)


def project_memory(
    plan: SlidePlan, layout: Layout, config: Config, facts: EncoderFacts, workers: int
) -> tuple[Projection, ContextPlan | None]:
    """Memory of a worker that does this slide, from sizes alone, and the way of its context."""
    level = plan.info.levels[plan.spec.level]
    piece_bytes = plan.pieces.height * plan.pieces.width * 3 if plan.pieces else plan.spec.cover**2 * 4
    stride_px = plan.grid.stride * plan.grid.scale / level.downsample
    rows = min(layout.shard_tiles, layout.tiles)
    pending = pending_tiles(plan.spec, plan.pieces, level, max(1, rows), stride_px, facts.threads)
    if not plan.grid.regular:
        pending = _scattered(plan, max(1, rows), pending, facts.threads)
    tile_bytes = plan.spec.tile**2 * 3
    cover_bytes = plan.spec.cover**2 * 3 * 5 if plan.spec.resampled else 0  # uint8 and the float32 rows of one average
    reading = pending * (tile_bytes + cover_bytes) + (facts.threads + 1) * piece_bytes * 2
    if facts.device.startswith("cuda") and plan.pieces:  # tiles are put together there
        reading = (GROUPS_IN_WORK * group_pieces(plan.pieces, host_group(facts.processes)) + facts.threads * 2) * piece_bytes
    item = 4 + 2 * np.dtype(layout.dtype).itemsize  # float32 results, the stored array and its encoded copy
    columns = layout.dim + layout.tokens * layout.dim
    projection = Projection(
        program=facts.peak_bytes,
        reading=LANES * reading,
        batches=LANES * 4 * max(facts.batch, READ_TILES) * tile_bytes,
        shard=(LANES + 1) * rows * columns * item,
        context=0,
        thumbnail=plan.mask.size * 24 + plan.candidates * 200,
        finishing=facts.dim**2 * 8 * 5,
    )
    if config.context is None:
        return projection, None
    windows = config.windows if "windows" in config.output.save else None
    context = plan_context(plan, layout, config.context, windows, facts, config.compute.memory_limit - projection.total, workers)
    return replace(projection, context=context.bytes), context


def plan_context(
    plan: SlidePlan, layout: Layout, context: Context, windows: Windows | None, facts: EncoderFacts, budget: int, workers: int
) -> ContextPlan:
    """The schedule of a slide's context, and what it holds; `auto` takes the first that fits into `budget` bytes."""
    spec = ContextSpec(facts.dim, context.depth, context.window, context.shift)
    side = int(facts.tokens**0.5)
    one_pass = facts.tokens > 1 and not layout.tokens
    tokens = plan.tiles * facts.tokens
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
        schedule = choose_schedule(spec, tokens, budget, workers)
    if schedule == "dense":
        return ContextPlan(schedule, one_pass, spec.whole_bytes(tokens))
    a_row = np.bincount(plan.tile_row, minlength=1) * facts.tokens
    if schedule == "row_bands" or one_pass:
        band = max(int(a_row.max()), min(tokens, BAND_BYTES // (facts.dim * 4)))
        held = 0 if windows is None else (windows.sides[0] * plan.grid.cols * side + band) * facts.dim * 4 * 2
        sums = (2 * layout.shard_tiles + band // facts.tokens) * facts.dim * 16
        return ContextPlan(schedule, one_pass, spec.state_bytes(plan.grid.cols * side, band) + sums + held)
    starts = np.arange(0, plan.tiles, layout.shard_tiles)
    ends = np.minimum(starts + layout.shard_tiles, plan.tiles) - 1
    halo = -(-(spec.halo + spec.window) // side)
    first = np.searchsorted(plan.tile_row, plan.tile_row[starts] - halo, "left")
    last = np.searchsorted(plan.tile_row, plan.tile_row[ends] + halo, "right")
    return ContextPlan(schedule, one_pass, spec.whole_bytes(int((last - first).max(initial=0)) * facts.tokens))


def check_memory(projection: Projection, config: Config, plan: SlidePlan) -> None:
    """Refuse what does not fit.

    Raises
    ------
    ConfigError
        With the projection, the limit and the way out.
    """
    limit = config.compute.memory_limit
    if projection.total <= limit:
        return
    fixed = projection.program + projection.batches + projection.context + projection.thumbnail + projection.finishing + SLACK
    room, varying = limit - fixed, projection.reading + projection.shard
    shard_tiles = int(config.compute.shard_tiles * room / varying) if room > 0 else 0
    advice = (
        f"Set compute.shard_tiles to {shard_tiles} or less, or raise compute.memory_limit."
        if shard_tiles >= 1
        else f"Raise compute.memory_limit to {gib(projection.total)} or more, or choose a smaller encoder or batch_size."
    )
    raise ConfigError(
        f"compute.memory_limit: a worker on {plan.ref.id} needs {gib(projection.total)} (program and model {gib(projection.program)}, "
        f"tiles {gib(projection.reading + projection.batches)}, a shard of {min(config.compute.shard_tiles, plan.tiles)} tiles "
        f"{gib(projection.shard)}, context {gib(projection.context)}), the limit is {gib(limit)}. {advice}"
    )


def gib(count: int) -> str:
    """Bytes in GiB or MiB, for people."""
    return f"{count / 1024**3:.2f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"
