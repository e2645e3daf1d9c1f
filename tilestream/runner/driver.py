"""A run from config to summary: slides are planned one after another while earlier ones are in work."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tilestream.config.load import load_config
from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.errors import ConfigError, InputError, InterruptedRunError, OutputError, TilestreamError, storage_error
from tilestream.runner.clusters import check_main_guard
from tilestream.runner.cohort import Cohort, list_cohort
from tilestream.runner.executors import Engine, Outcome, open_engine
from tilestream.runner.pipeline import Stage, stages_of
from tilestream.runner.prepare import PreparedSlide, Setup, open_slide, prepare_slide, set_up
from tilestream.runner.recipe import check_recipe, check_source, make_recipe, slide_recipe
from tilestream.runner.reporter import Reporter
from tilestream.runner.store_creation import create_store
from tilestream.runner.summary import SlideResult, Summary
from tilestream.stages.embed_tiles import add_counts, describe_encoder
from tilestream.stages.slide_task import Report, SlideTask, outlast_outages
from tilestream.stages.worker_settings import untrained_parts, worker_settings
from tilestream.store.lock import hold_lock
from tilestream.store.ownership import refuse_foreign
from tilestream.store.slide_store import SlideStore

LOOK_EVERY = 10.0
"""Seconds after which the progress of long tasks is looked up in the store."""

TILE_ERRORS = 1000
"""Tile errors kept for a slide in the summary."""


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    restart: bool = False,
    shard: tuple[int, int] | None = None,
    reporter: Reporter | None = None,
) -> Summary:
    """Embed the slides of a config; what the command `run` does.

    Parameters
    ----------
    config : Config, mapping or path
        What to do.
    overrides : sequence of str
        `a.b=c` settings that go before the config's.
    restart : bool
        Delete what the output holds of these slides and start over.
    shard : (i, n), optional
        Do only every n-th slide, starting at the i-th (0-based): for n independent jobs on one output.
    reporter : Reporter, optional
        Hears of the progress.

    Returns
    -------
    Summary
        Also written to `run.json` in the output.

    Raises
    ------
    ConfigError, InputError, OutputError, InterruptedRunError
        As the exit codes of the command line say; slides that are finished by then stay finished.
    """
    checked = config if isinstance(config, Config) else load_config(config, overrides)
    if checked.compute.scheduler.kind == "local":
        check_main_guard()
    cohort = list_cohort(checked, shard)
    try:
        return _run(checked, cohort, restart=restart, reporter=reporter or Reporter())
    except OSError as error:
        if (meant := storage_error(error)) is None:
            raise
        raise meant from error


def _run(config: Config, cohort: Cohort, *, restart: bool, reporter: Reporter) -> Summary:
    """Do it, and leave `run.json` however it ends."""
    start = time.perf_counter()
    results = [SlideResult(ref.id, ref.address, listed=dict(ref.extra)) for ref in cohort.refs]
    summary = Summary(config.output.path, config.model_dump(mode="json"), results)
    cohort.output.reach()
    refuse_foreign(cohort.output, cohort.refs, [f"{cohort.name}.json"])
    with hold_lock(cohort.output, cohort.name):
        try:
            with open_engine(config.compute, partial(reporter.message, level="warning")) as engine:
                described = partial(engine.call, describe_encoder)
                setup = set_up(config, worker_settings(config), described, engine.workers, len(cohort.refs))
                # All workers build their encoders now, so that none does while others wait for its first shard.
                engine.call_all(describe_encoder, setup.settings)
                setup = replace(setup, workers=engine.workers)
                Run(cohort, setup, engine, summary, reporter, restart=restart).execute()
        finally:
            summary.seconds = time.perf_counter() - start
            for result in results:
                if result.status == "planned":
                    result.status = "unfinished"
            cohort.output.put(f"{cohort.name}.json", summary.to_json().encode())
    return summary


@dataclass
class _SlideRun:
    """A slide in work."""

    task: SlideTask
    store: SlideStore
    result: SlideResult
    stages: Iterator[Stage]
    """What is to be done; each once all tasks of the one before it have ended."""
    passes: bool
    """Whether its tasks are many shards long."""
    in_work: int = 0
    """Tasks of the present stage that have not ended."""
    given_up: bool = False

    def next_stage(self) -> list[_Job]:
        """The jobs of the next stage that has any; none once the slide is finished."""
        stage = next((stage for stage in self.stages if stage.parts), None)
        if stage is None:
            return []
        self.in_work = len(stage.parts)
        return [_Job(self, stage, shards) for shards in stage.parts]


@dataclass(frozen=True)
class _Job:
    """A task and where its outcome belongs."""

    slide: _SlideRun
    stage: Stage
    shards: range


class Run:
    """One run over the slides of a cohort, whose encoder is known; `execute` does it."""

    def __init__(self, cohort: Cohort, setup: Setup, engine: Engine, summary: Summary, reporter: Reporter, *, restart: bool) -> None:
        self.cohort, self.setup, self.engine, self.summary, self.reporter, self.restart = cohort, setup, engine, summary, reporter, restart
        self.config = setup.config
        self.results = {result.id: result for result in summary.slides}
        self.recipe = make_recipe(setup.config, setup.facts)
        self.in_work: list[_SlideRun] = []
        self.images: dict[str, str] = {}
        """The first slide of each fingerprint."""
        summary.encoder = vars(setup.facts) | {}
        summary.workers, summary.device = engine.workers, setup.facts.device

    def execute(self) -> None:
        """Do all slides, after refusing what was made by another recipe."""
        if not self.restart:
            for ref in self.cohort.refs:
                self._check_recipe(ref)
        for note in self.setup.facts.notes:
            self.reporter.message(note, level="warning")
        for part in untrained_parts(self.config, self.setup.facts):
            self.reporter.message(
                f"{part} has random, untrained weights: its output shows that the line works and means nothing else.", level="warning"
            )
        self.reporter.started(len(self.cohort.refs), self.setup.facts, self.engine.workers)
        self._drive()

    def _check_recipe(self, ref: SlideRef) -> None:
        """Refuse a store of another recipe now; a slide whose own part of the recipe cannot be read is refused in its turn."""
        try:
            check_recipe(self.cohort.store(ref), slide_recipe(self.recipe, self.config, ref.id), ref.id)
        except InputError as error:
            self.reporter.message(str(error), level="warning")

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        """Keep `engine.capacity` tasks in flight until no slide is left; follow-up tasks go before new slides."""
        planned = self._plan_slides()
        follow_up: deque[_Job] = deque()
        in_flight = 0
        first: float | None = None
        looked = time.monotonic()
        while True:
            while in_flight < self.engine.capacity and (job := follow_up.popleft() if follow_up else next(planned, None)):
                if not job.slide.given_up:
                    first = first or time.perf_counter()
                    self.engine.submit(job, job.stage.work, job.slide.task, job.shards)
                    in_flight += 1
            if in_flight == 0:
                break
            ended = self.engine.wait_next(LOOK_EVERY)
            if time.monotonic() - looked >= LOOK_EVERY:
                looked = time.monotonic()
                self._look()
            if ended is None:
                continue
            in_flight -= 1
            follow_up.extend(self._receive(*ended))
            self.summary.embed_seconds = time.perf_counter() - (first or 0.0)

    def _look(self) -> None:
        """Tell how far the slides are whose tasks are many shards long."""
        for slide in self.in_work:
            if slide.passes:
                committed = slide.store.ledger().values()
                self.reporter.advanced(slide.result.id, sum(sum(entry["counts"].values()) for entry in committed))

    def _receive(self, job: _Job, outcome: Outcome) -> list[_Job]:
        """Book an outcome; the jobs of the slide's next stage where this was the last of its stage."""
        slide = job.slide
        if outcome.error is not None:
            self._give_up(slide, outcome.error)
            return []
        self._book(slide.result, outcome.value)
        slide.in_work -= 1
        if slide.in_work or slide.given_up:
            return []
        following = slide.next_stage()
        if not following:
            self._complete(slide)
        return following

    def _book(self, result: SlideResult, report: Report) -> None:
        """Add what a task did to the slide's result and to the summary."""
        self.summary.peak_bytes = max(self.summary.peak_bytes, report.peak_bytes)
        for stage, seconds in report.seconds.items():
            result.seconds[stage] = result.seconds.get(stage, 0.0) + seconds
        if report.counts:
            result.counts = add_counts(result.counts, report.counts)
            result.tile_errors |= dict(list(report.errors.items())[: TILE_ERRORS - len(result.tile_errors)])
            self.summary.new_tiles += sum(report.counts.values())
            self.reporter.shard_done(report)

    def _complete(self, slide: _SlideRun) -> None:
        """All stages of a slide have ended."""
        # As committed: a task that was done again after its worker died, or after an outage, told of a part of its shards only.
        slide.result.counts = {}
        for entry in slide.store.ledger().values():
            slide.result.counts = add_counts(slide.result.counts, entry["counts"])
        slide.store.complete({"tiles": slide.result.tiles, "counts": slide.result.counts})
        slide.result.status = "done"
        self.in_work.remove(slide)
        self.reporter.slide_done(slide.result)

    def _give_up(self, slide: _SlideRun, error: TilestreamError) -> None:
        if isinstance(error, ConfigError | InterruptedRunError | OutputError):
            raise error
        if not slide.given_up:
            slide.given_up = True
            self.in_work.remove(slide)
            self._refuse(slide.result, error)

    def _refuse(self, result: SlideResult, error: TilestreamError) -> None:
        """One slide cannot be done: the others go on, unless the config says otherwise."""
        result.status, result.error = "refused", str(error)
        result.traceback = "\n".join(getattr(error, "__notes__", ()))
        self.reporter.slide_done(result)
        if self.config.on_error.slide == "fail":
            raise error

    def _wait(self, seconds: float) -> None:
        """Pause because an image's storage does not answer."""
        self.reporter.message(f"an image's storage does not answer; trying again in {seconds:g} s", level="warning")
        time.sleep(seconds)

    # -- planning ---------------------------------------------------------------------------------------------------

    def _plan_slides(self) -> Iterator[_Job]:
        """Jobs of the first stages of all slides, each planned when its turn comes."""
        for ref in self.cohort.refs:
            result = self.results[ref.id]
            try:
                slide = outlast_outages(partial(self._plan_slide, ref, result), lambda: None, self._wait)
            except InputError as error:
                self._refuse(result, error)
                continue
            if slide is not None:
                self.in_work.append(slide)
                yield from slide.next_stage()

    def _plan_slide(self, ref: SlideRef, result: SlideResult) -> _SlideRun | None:
        """Prepare a slide and make its store ready; None where it is finished already."""
        store = self.cohort.store(ref)
        fresh = self.restart or store.attributes is None
        with open_slide(ref, self.config) as source:
            twice = self._twice(ref.id, source.info.fingerprint)
            if not self.restart:
                check_source(store, source.info.fingerprint, source.info.mpp, ref.id)
                if (mark := store.completion) is not None:
                    result.status, result.tiles, result.counts = "already done", mark["tiles"], mark["counts"]
                    self._warn(result, (store.attributes or {}).get("source", {}).get("warnings", ()))
                    self.reporter.slide_done(result)
                    return None
            slide = prepare_slide(ref, source, self.setup, None if fresh else store.layout)
        self._warn(result, slide.plan.warnings + twice)
        self.summary.projected_bytes = max(self.summary.projected_bytes, slide.projection.total)
        if fresh:
            create_store(store, slide, self.setup, slide_recipe(self.recipe, self.config, ref.id))
        elif lost := store.forget_damaged():
            self.reporter.message(f"{ref.id}: {lost} shards do not hold what was written; they are done again.", level="warning")
        self._tell_planned(slide, store, result)
        passes = slide.context is not None and slide.context.one_pass
        return _SlideRun(slide.task(self.setup, store.folder.address), store, result, stages_of(slide, self.setup, store), passes)

    def _tell_planned(self, slide: PreparedSlide, store: SlideStore, result: SlideResult) -> None:
        """Book what was planned for a slide and what its store holds of it already."""
        plan, committed = slide.plan, store.ledger()
        for entry in committed.values():
            result.counts = add_counts(result.counts, entry["counts"])
        result.tiles, result.candidates = len(plan), plan.candidates
        result.context = str(slide.context) if slide.context else ""
        if len(plan) == 0:
            result.note = "no tissue found" if plan.info.geo is None else "no tile holds anything"
        there = sum(len(plan.tile_row[slide.layout.rows(shard)]) for shard in committed)
        self.reporter.planned(plan, slide.projection, len(plan) - there)

    def _twice(self, slide: str, fingerprint: str) -> tuple[str, ...]:
        """A warning where another slide of this run has the same bytes."""
        first = self.images.setdefault(fingerprint, slide)
        return () if first == slide else (f"holds the same image as {first} (equal fingerprints); it counts twice in the output.",)

    def _warn(self, result: SlideResult, warnings: Sequence[str]) -> None:
        """Say each of a slide's warnings, and keep it for the summary."""
        result.warnings = list(dict.fromkeys(warnings))
        for warning in result.warnings:
            self.reporter.message(f"{result.id}: {warning}", level="warning")
