"""A run from config to summary: slides are planned one after another while earlier ones are in work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef, list_slides
from tilestream.errors import ConfigError, InputError, InterruptedRunError, OutputError, TilestreamError, storage_error
from tilestream.runner.executors import Engine, Outcome, open_engine
from tilestream.runner.memory import Projection, check_memory, project_memory
from tilestream.runner.recipe import check_recipe, check_source, make_recipe, slide_recipe
from tilestream.runner.slide_plan import SlidePlan, check_encoder, make_layout, make_slide_plan, source_options
from tilestream.runner.summary import SlideResult, Summary
from tilestream.runner.tasks import Step, Steps
from tilestream.stages.embed_tiles import ShardReport, describe_encoder
from tilestream.stages.finish_slide import FinishReport
from tilestream.stages.mix_context import build_context
from tilestream.stages.token_grid import tokens_a_side
from tilestream.stages.worker_settings import EncoderFacts, absolute, untrained_parts, worker_settings
from tilestream.store.folder import Folder
from tilestream.store.lock import hold_lock
from tilestream.store.ownership import refuse_foreign
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.coords import check_chosen
from tilestream.tiles.isolation import open_image

LOOK_EVERY = 10.0
"""Seconds without news after which the progress of long tasks is looked up in the store."""

TILE_ERRORS = 1000
"""Tile errors kept for a slide in the summary."""


class Reporter:
    """Hears what a run does; the command line draws it. Every method may be left as it is."""

    def message(self, text: str, *, level: str = "info") -> None:
        """Say something: level is info, warning or error."""

    def started(self, slides: int, facts: EncoderFacts, workers: int) -> None:
        """Hear that the encoder stands and slides follow."""

    def planned(self, plan: SlidePlan, projection: Projection, remaining: int) -> None:
        """Hear that a slide was planned, with `remaining` tiles still to embed."""

    def advanced(self, slide: str, tiles: int) -> None:
        """Hear how many tiles of a slide are in the store by now, earlier runs included, while a long task is in work."""

    def shard_done(self, report: ShardReport) -> None:
        """Hear that a shard is in the store."""

    def slide_done(self, result: SlideResult) -> None:
        """Hear that a slide ended, in whichever way."""


@dataclass
class _SlideRun:
    """A slide in work."""

    plan: SlidePlan
    store: SlideStore
    result: SlideResult
    steps: Iterator[list[Step]]
    """What is to be done; each list once all tasks of the one before it have ended."""
    in_work: int = 0
    """Tasks of the present step that have not ended."""
    given_up: bool = False

    def next_step(self) -> list[_Job]:
        """The jobs of the next step that has any; none once the slide is finished."""
        step = next((step for step in self.steps if step), [])
        self.in_work = len(step)
        return [_Job(self, function, task) for function, task in step]


@dataclass
class _Job:
    """A task and where its outcome belongs."""

    slide: _SlideRun
    function: Callable[[Any], Any]
    task: Any


class Run:
    """One run over the slides of a config; `execute` does it."""

    def __init__(self, config: Config, *, restart: bool, shard: tuple[int, int] | None, reporter: Reporter) -> None:
        self.config, self.restart, self.shard, self.reporter = config, restart, shard, reporter
        # Workers may run in another folder: every address that reaches them is absolute.
        self.output = Folder(absolute(config.output.path))
        refs = list_slides(config.slides)
        check_chosen(config.tiles.chosen, len(refs))
        self.refs = refs if shard is None else refs[shard[0] :: shard[1]]
        self.name = "run" if shard is None else f"run-{shard[0]}-of-{shard[1]}"
        self.results = {ref.id: SlideResult(ref.id, ref.address) for ref in self.refs}
        self.summary = Summary(config.output.path, config.model_dump(mode="json"), list(self.results.values()))
        self.settings = worker_settings(config)
        self.images: dict[str, str] = {}
        """The first slide of each fingerprint."""
        self.passes: list[_SlideRun] = []
        """Slides whose tiles and context are computed at once."""

    def execute(self) -> Summary:
        """Do it, and leave `run.json` however it ends."""
        try:
            return self._execute()
        except OSError as error:
            if (meant := storage_error(error)) is None:
                raise
            raise meant from error

    def _execute(self) -> Summary:
        start = time.perf_counter()
        self.output.reach()
        refuse_foreign(self.output, self.refs, [f"{self.name}.json"])
        with hold_lock(self.output, self.name):
            try:
                with open_engine(self.config.compute) as engine:
                    self._prepare(engine)
                    self._drive(engine)
            finally:
                self.summary.seconds = time.perf_counter() - start
                for result in self.results.values():
                    if result.status == "planned":
                        result.status = "unfinished"
                self.output.put(f"{self.name}.json", self.summary.to_json().encode())
        return self.summary

    def _prepare(self, engine: Engine) -> None:
        """Learn the encoder, and refuse what no slide can mend."""
        self.facts: EncoderFacts = engine.call(describe_encoder, self.settings)
        # All workers take the batch that the first one measured, so that it does not matter which of them does a shard; and build their
        # encoders now, so that none does while others wait for its first shard.
        self.settings = replace(self.settings, batch=self.facts.batch)
        engine.call_all(describe_encoder, self.settings)
        check_encoder(self.facts, self.config)
        if self.config.context is not None:
            build_context(self.config.context, self.facts.dim)  # refuses what does not fit before anything is read
        self.steps = Steps(self.config, self.facts, self.settings)
        self.recipe = make_recipe(self.config, self.facts)
        self.summary.encoder = vars(self.facts) | {}
        if not self.restart:
            for ref in self.refs:
                self._check_recipe(ref)
        for note in self.facts.notes:
            self.reporter.message(note, level="warning")
        self.summary.workers, self.summary.device = engine.workers, self.facts.device
        for part in untrained_parts(self.config, self.facts):
            self.reporter.message(
                f"{part} has random, untrained weights: its output shows that the line works and means nothing else.", level="warning"
            )
        self.workers = engine.workers
        self.reporter.started(len(self.refs), self.facts, engine.workers)

    def _check_recipe(self, ref: SlideRef) -> None:
        """Refuse a store of another recipe now; a slide whose own part of the recipe cannot be read is refused in its turn."""
        try:
            check_recipe(self._store(ref), slide_recipe(self.recipe, self.config, ref.id), ref.id)
        except InputError as error:
            self.reporter.message(str(error), level="warning")

    def _store(self, ref: SlideRef) -> SlideStore:
        return SlideStore(self.output / f"{ref.id}.zarr")

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _drive(self, engine: Engine) -> None:
        """Keep `engine.capacity` tasks in flight until no slide is left; follow-up tasks go before new slides."""
        planned = self._plan_slides()
        follow_up: deque[_Job] = deque()
        in_flight = 0
        first: float | None = None
        while True:
            while in_flight < engine.capacity and (job := follow_up.popleft() if follow_up else next(planned, None)):
                if not job.slide.given_up:
                    first = first or time.perf_counter()
                    engine.submit(job.function, job.task, job)
                    in_flight += 1
            if in_flight == 0:
                break
            ended = engine.wait_next(LOOK_EVERY)
            if ended is None:
                self._look()
                continue
            in_flight -= 1
            follow_up.extend(self._receive(*ended))
            self.summary.embed_seconds = time.perf_counter() - (first or 0.0)

    def _look(self) -> None:
        """Tell how far the passes are whose tasks are many shards long."""
        for slide in self.passes:
            if slide.result.status == "planned":
                committed = slide.store.ledger().values()
                self.reporter.advanced(slide.result.id, sum(sum(entry["counts"].values()) for entry in committed))

    def _receive(self, job: _Job, outcome: Outcome) -> list[_Job]:
        """Book an outcome; the jobs of the slide's next step where this was the last of its step."""
        slide, result = job.slide, job.slide.result
        if outcome.error is not None:
            self._give_up(slide, outcome.error)
            return []
        report = outcome.value
        self.summary.peak_bytes = max(self.summary.peak_bytes, report.peak_bytes)
        for stage, seconds in report.seconds.items():
            result.seconds[stage] = result.seconds.get(stage, 0.0) + seconds
        if isinstance(report, ShardReport):
            for status, count in report.counts.items():
                result.counts[status] = result.counts.get(status, 0) + count
            result.tile_errors |= dict(list(report.errors.items())[: TILE_ERRORS - len(result.tile_errors)])
            self.summary.new_tiles += sum(report.counts.values())
            self.reporter.shard_done(report)
        slide.in_work -= 1
        if isinstance(report, FinishReport):
            slide.store.complete({"tiles": result.tiles, "counts": result.counts})
            result.status = "done"
            self.reporter.slide_done(result)
        return slide.next_step() if slide.in_work == 0 and not slide.given_up else []

    def _give_up(self, slide: _SlideRun, error: TilestreamError) -> None:
        if isinstance(error, ConfigError | InterruptedRunError | OutputError):
            raise error
        slide.given_up = True
        if slide.result.status != "refused":
            self._refuse(slide.result, error)

    def _refuse(self, result: SlideResult, error: TilestreamError) -> None:
        """One slide cannot be done: the others go on, unless the config says otherwise."""
        result.status, result.error = "refused", str(error)
        self.reporter.slide_done(result)
        if self.config.on_error.slide == "fail":
            raise error

    # -- planning ---------------------------------------------------------------------------------------------------

    def _plan_slides(self) -> Iterator[_Job]:
        """Jobs of the first steps of all slides, each planned when its turn comes."""
        for ref in self.refs:
            result = self.results[ref.id]
            try:
                slide = self._plan_slide(ref, result)
            except InputError as error:
                self._refuse(result, error)
                continue
            if slide is not None:
                yield from slide.next_step()

    def _plan_slide(self, ref: SlideRef, result: SlideResult) -> _SlideRun | None:
        """Open, plan and check a slide, and make its store ready; None where it is finished already."""
        store = self._store(ref)
        with open_image(ref.address, source_options(self.config, ref), isolate=self.config.compute.isolate) as source:
            twice = self._twice(ref.id, source.info.fingerprint)
            if not self.restart:
                check_source(store, source.info.fingerprint, source.info.mpp, ref.id)
                if (mark := store.completion) is not None:
                    result.status, result.tiles, result.counts = "already done", mark["tiles"], mark["counts"]
                    self._warn(result, (store.attributes or {}).get("source", {}).get("warnings", ()))
                    self.reporter.slide_done(result)
                    return None
            plan = make_slide_plan(ref, source, self.config, self.facts)
        self._warn(result, plan.warnings + twice)
        fresh = self.restart or store.attributes is None
        layout = make_layout(plan.tiles, self.config, self.facts) if fresh else store.layout
        if self.config.context is not None:
            tokens_a_side(self.facts.tokens, plan.grid)
        projection, context = project_memory(plan, layout, self.config, self.facts, self.workers)
        check_memory(projection, self.config, plan)
        self.summary.projected_bytes = max(self.summary.projected_bytes, projection.total)
        if fresh:
            self.steps.create(store, plan, layout, slide_recipe(self.recipe, self.config, ref.id))
        elif lost := store.forget_damaged():
            self.reporter.message(f"{ref.id}: {lost} shards do not hold what was written; they are done again.", level="warning")
        committed = store.ledger()
        for entry in committed.values():
            for status, count in entry["counts"].items():
                result.counts[status] = result.counts.get(status, 0) + count
        result.tiles, result.candidates = plan.tiles, plan.candidates
        if plan.thumbnail.unreadable:
            share = plan.thumbnail.unreadable / plan.mask.size
            self.reporter.message(f"{ref.id}: {share:.1%} of the thumbnail cannot be read; tiles there are kept.", level="warning")
        if plan.tiles == 0:
            result.note = "no tissue found"
        result.context = str(context) if context else ""
        remaining = sorted(set(range(layout.shards)) - set(committed))
        self.reporter.planned(plan, projection, sum(len(plan.tile_row[layout.rows(k)]) for k in remaining))
        run = _SlideRun(plan, store, result, self.steps.of(plan, store, layout, context))
        if context is not None and context.one_pass:
            self.passes.append(run)
        return run

    def _twice(self, slide: str, fingerprint: str) -> tuple[str, ...]:
        """A warning where another slide of this run has the same bytes."""
        first = self.images.setdefault(fingerprint, slide)
        return () if first == slide else (f"holds the same image as {first} (equal fingerprints); it counts twice in the output.",)

    def _warn(self, result: SlideResult, warnings: Sequence[str]) -> None:
        """Say each of a slide's warnings, and keep it for the summary."""
        result.warnings = list(dict.fromkeys(warnings))
        for warning in result.warnings:
            self.reporter.message(f"{result.id}: {warning}", level="warning")
