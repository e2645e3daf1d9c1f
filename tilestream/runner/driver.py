"""A run from config to summary: slides are planned one after another while earlier ones are in work."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tilestream.config.load import load_config
from tilestream.config.python_objects import is_object_name
from tilestream.config.restart import ALL
from tilestream.config.schema import Config
from tilestream.config.slide_list import SlideRef
from tilestream.errors import ConfigError, InputError, InterruptedRunError, OutputError, TilestreamError, storage_error
from tilestream.runner.cohort import Cohort, list_cohort, open_slide, share_out
from tilestream.runner.engines.clusters import check_main_guard
from tilestream.runner.engines.executors import Engine, Outcome, open_engine
from tilestream.runner.recipe import Recipes
from tilestream.runner.reporter import Reporter
from tilestream.runner.resume import book_finished, finished, look_at_all, nothing_to_do, take_up
from tilestream.runner.summary import STATE, SlideResult, Summary, note_refusal, refusal_of, same_image, write_records
from tilestream.stages.slide_task import Report, add_counts, outlast_outages
from tilestream.stages.worker_settings import untrained_parts, worker_settings
from tilestream.store.lock import Claims
from tilestream.store.ownership import refuse_foreign
from tilestream.store.slide_store import SlideStore

if TYPE_CHECKING:
    from tilestream.runner.pipeline import Job, SlideRun
    from tilestream.runner.prepare import PreparedSlide, Setup

LOOK_EVERY = 10.0
"""Seconds after which the progress of long tasks is looked up in the store."""

TILE_ERRORS = 1000
"""Tile errors kept for a slide in the summary."""


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    restart: bool | str = False,
    retry_failed: bool = False,
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
    restart : bool or str
        Delete what the output holds of these slides and start over; or only one stage of it and what is made of that: context, windows or pool.
    retry_failed : bool
        Do shards with failed tiles again, and what is made of them.
    shard : (i, n), optional
        Be one of n independent jobs on one output: every n-th slide, starting at the i-th (0-based), then those that no other job does.
    reporter : Reporter, optional
        Hears of the progress.

    Returns
    -------
    Summary
        Also written to `runs/` in the output, where anything was done; `run.json` there is the state of all of it.

    Raises
    ------
    ConfigError, InputError, OutputError, InterruptedRunError
        As the exit codes of the command line say; slides that are finished by then stay finished.
    """
    checked = config if isinstance(config, Config) else load_config(config, overrides)
    if checked.compute.scheduler.kind == "local":
        check_main_guard()
    cohort = list_cohort(checked, shard, restart=restart, retry_failed=retry_failed)
    try:
        return _run(checked, cohort, reporter or Reporter())
    except OSError as error:
        if (meant := storage_error(error)) is None:
            raise
        raise meant from error


def _run(config: Config, cohort: Cohort, reporter: Reporter) -> Summary:
    """Do it, and leave its record and the state of the output however it ends; where nothing was done, nothing is written."""
    start = time.perf_counter()
    cohort.output.reach()
    refuse_foreign(cohort.output, cohort.refs, [STATE])
    recipes = Recipes(config)
    cohort = share_out(cohort)
    results = [SlideResult(ref.id, ref.address, listed=dict(ref.extra)) for ref in cohort.refs]
    summary = Summary(config.output.path, config.model_dump(mode="json"), results)
    todo = look_at_all(cohort, recipes, summary, reporter)
    if not todo and not is_object_name(config.encoder.name):  # an object of this process may be another one by now
        reporter.message(nothing_to_do(summary))
        return summary
    # Only who has work needs torch.
    from tilestream.runner.prepare import set_up
    from tilestream.stages.embed_tiles import describe_encoder

    try:
        with Claims(cohort.output) as claims, open_engine(config.compute, partial(reporter.message, level="warning")) as engine:
            described = partial(engine.call, describe_encoder)
            setup = set_up(config, worker_settings(config), described, engine.workers, len(cohort.refs))
            # All workers build their encoders now, so that none does while others wait for its first shard.
            engine.call_all(describe_encoder, setup.settings)
            setup = replace(setup, workers=engine.workers)
            Run(cohort, setup, engine, summary, reporter, recipes.knowing(setup.facts), claims, todo).execute()
    finally:
        summary.seconds = time.perf_counter() - start
        if cohort.shard is not None:  # other jobs report on what they have
            summary.slides = [result for result in summary.slides if result.status != "elsewhere"]
        for result in summary.slides:
            if result.status == "planned":
                result.status = "unfinished"
        if summary.touched:
            write_records(cohort.output, summary)
    if cohort.shard is None and not summary.touched and (held := [s.error for s in summary.slides if s.status == "elsewhere"]):
        raise OutputError(f"{cohort.output.address} is in use by {held[0]}. Wait for it, or choose another output.")
    return summary


class Run:
    """One run over the slides of a cohort, whose encoder is known; `execute` does it."""

    def __init__(
        self, cohort: Cohort, setup: Setup, engine: Engine, summary: Summary, reporter: Reporter, recipes: Recipes, claims: Claims,
        todo: list[SlideRef],
    ) -> None:  # fmt: skip
        self.cohort, self.setup, self.engine, self.summary, self.reporter = cohort, setup, engine, summary, reporter
        self.recipes, self.claims, self.todo = recipes, claims, todo
        self.config = setup.config
        self.results = {result.id: result for result in summary.slides}
        self.token = os.urandom(8).hex()
        """Of this run, for the fences of the stores that it writes to."""
        self.in_work: list[SlideRun] = []
        self.images: dict[str, str] = {}
        """The first slide of each fingerprint."""
        for ref in cohort.refs:
            if ref not in todo:
                same_image(self.images, ref.id, (cohort.store(ref).attributes or {})["source"]["fingerprint"])
        summary.encoder = vars(setup.facts) | {}
        summary.workers, summary.device = engine.workers, setup.facts.device

    def execute(self) -> None:
        """Do all slides, after refusing what was made by another encoder."""
        if self.cohort.restart != ALL:
            for ref in self.cohort.refs:
                with suppress(InputError):  # refused in its turn
                    self.recipes.changed_stages(self.cohort.store(ref), ref)
        for note in self.setup.facts.notes:
            self.reporter.message(note, level="warning")
        for part in untrained_parts(self.config, self.setup.facts):
            self.reporter.message(
                f"{part} has random, untrained weights: its output shows that the line works and means nothing else.", level="warning"
            )
        self.reporter.started(len(self.cohort.refs), self.setup.facts, self.engine.workers)
        self._drive()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        """Keep `engine.capacity` tasks in flight until no slide is left; follow-up tasks go before new slides."""
        planned = self._plan_slides()
        follow_up: deque[Job] = deque()
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

    def _receive(self, job: Job, outcome: Outcome) -> list[Job]:
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

    def _complete(self, slide: SlideRun) -> None:
        """All stages of a slide have ended."""
        # As committed: a task that was done again after its worker died, or after an outage, told of a part of its shards only.
        slide.result.counts = {}
        for entry in slide.store.ledger().values():
            slide.result.counts = add_counts(slide.result.counts, entry["counts"])
        slide.store.complete({})
        slide.result.status = "done"
        self.in_work.remove(slide)
        self._let_go(slide.result)
        self.reporter.slide_done(slide.result)

    def _give_up(self, slide: SlideRun, error: TilestreamError) -> None:
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
        self._let_go(result)
        self.reporter.slide_done(result)
        if self.config.on_error.slide == "fail":
            raise error

    def _wait(self, seconds: float) -> None:
        """Pause because an image's storage does not answer."""
        self.reporter.message(f"an image's storage does not answer; trying again in {seconds:g} s", level="warning")
        time.sleep(seconds)

    # -- planning ---------------------------------------------------------------------------------------------------

    def _let_go(self, result: SlideResult) -> None:
        """A slide has ended: others may have it, and know why it was refused."""
        self.summary.touched |= note_refusal(self.cohort.output, result.id, result.error) or result.status == "done"
        self.claims.release(result.id)

    def _plan_slides(self) -> Iterator[Job]:
        """Jobs of the first stages of all slides, each taken and planned when its turn comes; those that others have are looked at once more."""
        held = []
        for ref in self.todo:
            if ref in self.cohort.others and not self.claims.abandoned(ref.id):
                continue
            if ref in self.cohort.spare and refusal_of(self.cohort.output, ref.id):
                continue  # told by the job that tried it
            if self.claims.take(ref.id):
                held.append(ref)
            else:
                yield from self._begin(ref)
        for ref in held:
            if owner := self.claims.take(ref.id):
                if (result := self.results.get(ref.id)) is not None:
                    result.status, result.error = "elsewhere", owner
            else:
                yield from self._begin(ref)

    def _begin(self, ref: SlideRef) -> list[Job]:
        """The first jobs of a slide that is ours."""
        result = self.results.get(ref.id) or SlideResult(ref.id, ref.address, listed=dict(ref.extra))
        try:
            slide = outlast_outages(partial(self._plan_slide, ref, result), lambda: None, self._wait)
        except InputError as error:
            self._keep(result)
            self._refuse(result, error)
            return []
        if slide is None:
            self.claims.release(ref.id)
            return []
        self._keep(result)
        self.in_work.append(slide)
        return slide.next_stage()

    def _keep(self, result: SlideResult) -> None:
        """Report on a slide, be it another job's."""
        if self.results.setdefault(result.id, result) is result and result not in self.summary.slides:
            self.summary.slides.append(result)

    def _plan_slide(self, ref: SlideRef, result: SlideResult) -> SlideRun | None:
        """Prepare a slide and make its store ready; None where another job finished it in the meantime."""
        from tilestream.runner.pipeline import SlideRun, stages_of

        store = SlideStore(self.cohort.output / f"{ref.id}.zarr", self.token)
        with open_slide(ref, self.config) as source:
            if (mark := finished(store, ref, source, self.recipes, self.cohort)) is not None:
                book_finished(result, store, mark, self.reporter, self.images)
                return None
            self.summary.touched = True
            slide = take_up(store, ref, source, self.setup, self.recipes, self.cohort, partial(self.reporter.message, level="warning"))
            twice = same_image(self.images, ref.id, source.info.fingerprint)
        self._warn(result, slide.plan.warnings + twice)
        self.summary.projected_bytes = max(self.summary.projected_bytes, slide.projection.total)
        self._tell_planned(slide, store, result)
        passes = slide.context is not None and slide.context.one_pass
        return SlideRun(slide.task(self.setup, store), store, result, stages_of(slide, self.setup, store), passes)

    def _tell_planned(self, slide: PreparedSlide, store: SlideStore, result: SlideResult) -> None:
        """Book what was planned for a slide and what its store holds of it already."""
        plan, committed = slide.plan, store.ledger()
        for entry in committed.values():
            result.counts = add_counts(result.counts, entry["counts"])
            result.tile_errors |= {
                int(row): cause for row, cause in list(entry.get("errors", {}).items())[: TILE_ERRORS - len(result.tile_errors)]
            }
        result.tiles, result.candidates = len(plan), plan.candidates
        result.context = str(slide.context) if slide.context else ""
        if len(plan) == 0:
            result.note = "no tissue found" if plan.info.geo is None else "no tile holds anything"
        there = sum(len(plan.tile_row[slide.layout.rows(shard)]) for shard in committed)
        self.reporter.planned(plan, slide.projection, len(plan) - there)

    def _warn(self, result: SlideResult, warnings: Sequence[str]) -> None:
        """Say each of a slide's warnings, and keep it for the summary."""
        result.warnings = list(dict.fromkeys(warnings))
        for warning in result.warnings:
            self.reporter.message(f"{result.id}: {warning}", level="warning")
