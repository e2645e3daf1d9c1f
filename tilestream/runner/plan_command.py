"""What the command `plan` prints: every slide's plan, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from tilestream.buffers import counted, gib
from tilestream.config.heads import NO_ENCODER
from tilestream.config.schema import Config
from tilestream.encoders.stated import SCRATCH, state_encoder
from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, EXIT_REFUSED, InputError
from tilestream.runner.cohort import list_cohort, open_slide, stage_of
from tilestream.runner.contexts.fitted_context import with_fitted_context
from tilestream.runner.prepare import PreparedSlide, Setup, prepare_slide, set_up
from tilestream.runner.recipe import Recipes
from tilestream.runner.slide_plan import check_encoder
from tilestream.runner.summary import same_image
from tilestream.sources.facts.columns import print_rows, print_words
from tilestream.stages.hardware import PROGRAM_BYTES, count_cuda, has_amx
from tilestream.stages.shares import CPU_BATCH
from tilestream.stages.slides.contract import check_slide_encoder
from tilestream.stages.worker_settings import EncoderFacts, WorkerSettings, worker_count, worker_settings


@dataclass
class Planned:
    """The plans of a config's slides, and why some were refused."""

    setup: Setup
    slides: list[PreparedSlide] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    built: bool = False
    """Whether the encoder had to be built to know what it is."""

    @property
    def exit_code(self) -> int:
        """As a run with these refusals would end."""
        if not self.refused:
            return EXIT_DONE
        return EXIT_PARTIAL if self.slides and self.setup.config.on_error.slide == "skip" else EXIT_REFUSED


def plan_slides(config: Config) -> Planned:
    """Plan every slide of a config.

    Raises
    ------
    ConfigError
        The config cannot work, or a worker's memory would exceed the limit.
    """
    config = with_fitted_context(config)
    refs = list_cohort(config).refs
    settings, workers = worker_settings(config), worker_count(config.compute)
    setup = state_setup(config, settings, workers, len(refs))
    planned = Planned(
        setup or set_up(config, settings, lambda work, asked: work(asked), workers, len(refs), Recipes(config)), built=setup is None
    )
    setup = planned.setup
    with stage_of(config):
        for ref in refs:
            try:
                with open_slide(ref, config) as source:
                    planned.slides.append(prepare_slide(ref, source, setup))
            except InputError as error:
                planned.refused[ref.id] = str(error)
    return planned


def state_setup(config: Config, settings: WorkerSettings, workers: int, slides: int) -> Setup | None:
    """What holds for all slides where that can be told without building the encoder; None where it cannot: it is not ours, runs on a GPU or has parts behind it."""
    on_processor = settings.device == "cpu" or (settings.device == "auto" and count_cuda() == 0)
    if not on_processor or config.heads or config.context is not None or settings.encoder == NO_ENCODER or settings.bands:
        return None
    known = state_encoder(settings.spec, settings.tile)
    if known is None:
        return None
    batch, precision = settings.batch or CPU_BATCH, settings.precision
    weights = known.parameters * 4 * (1 if known.untrained else 2)  # those of a file beside the module's
    facts = EncoderFacts(
        name=settings.encoder, dim=known.dim, tokens=known.tokens, tile_size=known.tile_size, mpp=known.mpp, parameters=known.parameters, digest="",
        untrained=known.untrained, peak_bytes=PROGRAM_BYTES + weights + SCRATCH + batch * known.a_tile, device="cpu",
        precision=("bf16" if has_amx() else "fp32") if precision == "auto" else precision, batch=batch, threads=settings.threads,
        mpp_range=known.mpp_range, vector=known.vector,
    )  # fmt: skip
    check_encoder(facts, config)
    check_slide_encoder(config, facts.dim)
    return Setup(config, settings, facts, workers, slides)


def named(slide: str, words: str) -> str:
    """What is said of a slide, with its name in front once."""
    return f"{slide}: {words.removeprefix(f'{slide}: ')}"


COLUMNS = ("slide", "size (h x w)", "µm/px", "read from", "tiles kept", "shards", "output", "context", "memory")
"""What the table of a plan shows of a slide."""

NARROW = ("slide", "size (h x w)", "µm/px", "tiles kept", "memory")
"""Those that fit into 80 letters."""

LEAST_WIDE = 110
"""Letters a line that all of them need."""


def _row(slide: PreparedSlide) -> tuple[str, ...]:
    plan = slide.plan
    size, level = plan.info.size, plan.info.levels[plan.spec.level]
    averaged = ", averaged" if plan.spec.resampled else ""
    return (
        plan.ref.id, f"{size.height} x {size.width}", "-" if plan.info.mpp is None else f"{plan.info.mpp:.4g}",
        f"level {plan.spec.level} (1/{level.downsample:.4g}{averaged})", f"{len(plan):,} of {plan.candidates:,}", str(slide.layout.shards),
        gib(slide.output_bytes), str(slide.context or "-"), gib(slide.projection.total),
    )  # fmt: skip


def print_plan(planned: Planned, console: Console) -> None:
    """The table of a plan, and its totals."""
    wide = console.width >= LEAST_WIDE
    columns = COLUMNS if wide else NARROW
    rows = [dict(zip(COLUMNS, _row(slide), strict=True)) for slide in planned.slides]
    print_rows(console, columns, [[row[column] for column in columns] for row in rows], folded=("slide", "read from", "context"))
    seen: dict[str, str] = {}
    for slide in planned.slides:
        for warning in slide.plan.warnings + same_image(seen, slide.plan.ref.id, slide.plan.info.fingerprint):
            print_words(console, f"warning: {slide.plan.ref.id}: {warning}", style="yellow")
    for refused, reason in planned.refused.items():
        print_words(console, f"refused: {named(refused, reason)}", style="yellow")
    tiles, size_bytes = sum(len(slide.plan) for slide in planned.slides), sum(slide.output_bytes for slide in planned.slides)
    peak = max((slide.projection.total for slide in planned.slides), default=0)
    facts, config = planned.setup.facts, planned.setup.config
    print_words(
        console,
        f"{counted(len(planned.slides), 'slide')}, {counted(tiles, 'tile')}, {gib(size_bytes)} of output before compression; {facts.name}, {facts.dim} dims, "
        f"{facts.precision} on {facts.device}; at most {gib(peak)} of {gib(config.compute.memory_limit)} a worker",
    )
    for head in planned.setup.heads:
        left = sum(slide.heads[head.name] for slide in planned.slides)
        classes = f": {', '.join(head.answer.classes)}" if head.answer.classes else ""
        print_words(console, f"head {head.name}: {head.head.kind} on {head.head.input}, {head.answer.task}{classes}; {gib(left)} of output")
    for note in planned.setup.notes:
        print_words(console, f"note: {note}")
    if planned.built:
        print_words(
            console, "The encoder was loaded to know this; only for tilestream's own encoders on a processor can a plan do without."
        )
    for part in planned.setup.untrained:
        print_words(console, f"{part} has random, untrained weights.", style="yellow")
