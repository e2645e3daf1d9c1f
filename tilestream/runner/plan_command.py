"""What the command `plan` prints: every slide's plan, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tilestream.config.schema import Config
from tilestream.config.slide_list import list_slides
from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, EXIT_REFUSED, InputError
from tilestream.runner.memory import ContextPlan, Projection, check_memory, gib, project_memory
from tilestream.runner.slide_plan import SlidePlan, check_encoder, make_layout, make_slide_plan, source_options
from tilestream.stages.embed_tiles import describe_encoder
from tilestream.stages.mix_context import build_context
from tilestream.stages.token_grid import tokens_a_side
from tilestream.stages.worker_settings import EncoderFacts, untrained_parts, worker_count, worker_settings
from tilestream.store.layout import Layout
from tilestream.tiles.coords import check_chosen
from tilestream.tiles.isolation import open_image


@dataclass
class Planned:
    """The plans of a config's slides, and why some were refused."""

    config: Config
    facts: EncoderFacts
    slides: list[tuple[SlidePlan, Layout, Projection, ContextPlan | None]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """As a run with these refusals would end."""
        if not self.refused:
            return EXIT_DONE
        return EXIT_PARTIAL if self.slides and self.config.on_error.slide == "skip" else EXIT_REFUSED


def plan_slides(config: Config) -> Planned:
    """Plan every slide of a config.

    Raises
    ------
    ConfigError
        The config cannot work, or a worker's memory would exceed the limit.
    """
    facts = describe_encoder(worker_settings(config))
    check_encoder(facts, config)
    if config.context is not None:
        build_context(config.context, facts.dim)
    planned = Planned(config, facts)
    refs = list_slides(config.slides)
    check_chosen(config.tiles.chosen, len(refs))
    for ref in refs:
        try:
            with open_image(ref.address, source_options(config, ref), isolate=config.compute.isolate) as source:
                plan = make_slide_plan(ref, source, config, facts)
        except InputError as error:
            planned.refused[ref.id] = str(error)
            continue
        layout = make_layout(plan.tiles, config, facts)
        if config.context is not None:
            tokens_a_side(facts.tokens, plan.grid)
        projection, context = project_memory(plan, layout, config, facts, worker_count(config.compute))
        check_memory(projection, config, plan)
        planned.slides.append((plan, layout, projection, context))
    return planned


def print_plan(planned: Planned, console: Console) -> None:
    """The table of a plan, and its totals."""
    table = Table(box=None, pad_edge=False)
    for column in ("slide", "size (h x w)", "µm/px", "read from", "tiles kept", "shards", "output", "context", "memory a worker"):
        table.add_column(column, overflow="fold")
    for plan, layout, projection, context in planned.slides:
        size, level = plan.info.size, plan.info.levels[plan.spec.level]
        averaged = ", averaged" if plan.spec.resampled else ""
        table.add_row(
            plan.ref.id, f"{size.height} x {size.width}", "-" if plan.info.mpp is None else f"{plan.info.mpp:.4g}",
            f"level {plan.spec.level} (1/{level.downsample:.4g}{averaged})", f"{plan.tiles} of {plan.candidates}", str(layout.shards), gib(layout.bytes), str(context or "-"), gib(projection.total),
        )  # fmt: skip
    console.print(table)
    for plan, *_ in planned.slides:
        for warning in plan.warnings:
            console.print(f"warning: {plan.ref.id}: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for slide, reason in planned.refused.items():
        console.print(f"refused: {slide}: {reason}", style="yellow", highlight=False, markup=False)
    tiles, size_bytes = sum(p.tiles for p, _, _, _ in planned.slides), sum(layout.bytes for _, layout, _, _ in planned.slides)
    peak = max((projection.total for _, _, projection, _ in planned.slides), default=0)
    facts = planned.facts
    console.print(
        f"{len(planned.slides)} slides, {tiles} tiles, {gib(size_bytes)} of output before compression; {facts.name}, {facts.dim} dims, {facts.precision} on {facts.device}; "
        f"at most {gib(peak)} of {gib(planned.config.compute.memory_limit)} a worker",
        highlight=False, markup=False,
    )  # fmt: skip
    for part in untrained_parts(planned.config, facts):
        console.print(f"{part} has random, untrained weights.", style="yellow", highlight=False, markup=False)
