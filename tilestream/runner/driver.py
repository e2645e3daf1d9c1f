"""A run from config to summary: work is handed out, and what came of it booked, in one loop that waits for nothing else."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tilestream.buffers import counted
from tilestream.config.load import load_config, recorded_config
from tilestream.config.python_objects import is_object_name
from tilestream.config.restart import ALL
from tilestream.config.schema import Config
from tilestream.errors import ConfigError, InterruptedRunError, OutputError, TilestreamError, place_error, storage_error
from tilestream.runner.cohort import Cohort, list_cohort, see_first, share_out, stage_of
from tilestream.runner.contexts.fitted_context import with_fitted_context
from tilestream.runner.engines.clusters import check_main_guard
from tilestream.runner.engines.engine import Engine, Outcome
from tilestream.runner.engines.executors import open_engine
from tilestream.runner.engines.hand_out import HandOut
from tilestream.runner.heads.stored import stored_encoder
from tilestream.runner.recipe import Recipes
from tilestream.runner.records.state import STATE, mend_state, note_refusal, write_records
from tilestream.runner.reporter import Reporter
from tilestream.runner.resume import Looked, book_finished, look_at_all, nothing_to_do, refuse_changed_stores
from tilestream.runner.summary import EMBEDDING, SlideResult, Summary, same_image
from tilestream.stages.clock import Wall
from tilestream.stages.hardware import held_memory
from tilestream.stages.slide_task import Report
from tilestream.store.layout import nothing_kept
from tilestream.store.lock import Claims
from tilestream.store.ownership import refuse_foreign, refuse_unwritable

if TYPE_CHECKING:
    from tilestream.runner.ahead import Begun, Planned, Planner
    from tilestream.runner.pipeline import Job, SlideRun
    from tilestream.runner.prepare import Setup

NOTE_EVERY = 10.0
"""Seconds between two notes of what was spent on a slide."""


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    restart: bool | str = False,
    retry_failed: bool = False,
    shard: tuple[int, int] | None = None,
    reporter: Reporter | None = None,
    began: float | None = None,
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
    began : float, optional
        Of `time.perf_counter`: from when on the run's wall clock counts, in a process of its own. Where it is not given, from this call on,
        and what the caller's process holds by then does not count against `compute.memory_limit`.

    Returns
    -------
    Summary
        Also written to `runs/` in the output, where anything was done; `run.json` there is the state of all of it.

    Raises
    ------
    ConfigError, InputError, OutputError, InterruptedRunError
        As the exit codes of the command line say; slides that are finished by then stay finished.
    """
    held = held_memory() if began is None else 0
    began = time.perf_counter() if began is None else began
    checked = with_fitted_context(config if isinstance(config, Config) else load_config(config, overrides))
    compute = checked.compute
    if compute.scheduler.kind == "local" and compute.workers != "auto":  # else it is seen when there is work
        check_main_guard()
    cohort = list_cohort(checked, shard, restart=restart, retry_failed=retry_failed)
    try:
        with stage_of(checked):
            return _run(checked, cohort, reporter or Reporter(), began, held)
    except OSError as error:
        if (meant := storage_error(error) or place_error(error)) is None:
            raise
        raise meant from error


def _run(config: Config, cohort: Cohort, reporter: Reporter, began: float, held: int) -> Summary:
    """Do it, and leave its record and the state of the output however it ends; where nothing was done, nothing is written."""
    cohort.output.reach()
    refuse_foreign(cohort.output, cohort.refs, [STATE])
    recipes = Recipes(config)
    cohort = share_out(cohort)
    results = [SlideResult(ref.id, ref.address, listed=dict(ref.extra)) for ref in cohort.refs]
    summary = Summary(config.output.path, recorded_config(config), results, wall=Wall(began))
    summary.wall.mark("config")
    looked = look_at_all(cohort, recipes, summary, reporter)
    todo = looked.todo
    if not todo and not is_object_name(config.encoder.name):  # an object of this process may be another one by now
        mend_state(cohort.output, summary)
        reporter.message(nothing_to_do(summary, cohort, config.encoder.name))
        return summary
    refuse_unwritable(cohort.output)
    summary.wall.mark("looking")
    looked = replace(looked, first=see_first(cohort, config, todo))
    work: Run | None = None
    reporter.message(f"{counted(len(todo) or len(cohort.refs), 'slide')} to do: loading PyTorch and the encoder ...")
    try:
        with Claims(cohort.output) as claims, open_engine(config.compute, partial(reporter.message, level="warning")) as engine:
            summary.wall.mark("workers")
            from tilestream.runner.prepare import set_up_on  # only who has work needs torch, which comes while workers start

            setup = set_up_on(engine, config, len(cohort.refs), recipes, stored_encoder(cohort, recipes, todo), summary.wall)
            setup = replace(setup, held=held if engine.in_process else 0)
            if setup.facts.device.startswith("cuda"):
                engine.settle()
            work = Run(cohort, setup, engine, summary, reporter, recipes.knowing(setup.facts, setup.heads), claims, looked)
            work.execute()
    finally:
        if work is not None:
            work.hear_progress()  # of what was set aside when it was stopped
        summary.wall.enter("ended")
        summary.seconds = time.perf_counter() - began
        if cohort.shard is not None:  # other jobs report on what they have
            summary.slides = [result for result in summary.slides if result.status != "elsewhere"]
        for result in summary.slides:
            if result.status == "planned":
                result.status = "unfinished"
        if summary.touched:
            write_records(cohort.output, summary)
    if cohort.shard is None and not summary.touched and (elsewhere := [s.error for s in summary.slides if s.status == "elsewhere"]):
        raise OutputError(f"{cohort.output.address} is in use by {elsewhere[0]}. Wait for it, or choose another output.")
    return summary


class Run:
    """One run over the slides of a cohort, whose encoder is known; `execute` does it."""

    def __init__(
        self, cohort: Cohort, setup: Setup, engine: Engine, summary: Summary, reporter: Reporter, recipes: Recipes, claims: Claims,
        looked: Looked,
    ) -> None:  # fmt: skip
        self.cohort, self.setup, self.engine, self.summary, self.reporter = cohort, setup, engine, summary, reporter
        self.recipes, self.claims, self.looked = recipes, claims, looked
        self.config = setup.config
        self.results = {result.id: result for result in summary.slides}
        self.hand_out = HandOut(engine)
        self.news: deque[str] = deque()
        """What planning has met and nobody was told yet."""
        self.in_work: list[SlideRun] = []
        self.images = looked.images
        """The first slide of each fingerprint."""
        summary.encoder, summary.notes = vars(setup.facts) | {}, setup.notes
        summary.workers, summary.device = engine.workers, setup.facts.device

    def execute(self) -> None:
        """Do all slides, after refusing what was made by another encoder."""
        if self.cohort.restart != ALL:
            refuse_changed_stores(self.cohort, self.recipes)
        for note in self.setup.notes:
            self.reporter.message(note, level="warning")
        for part in self.setup.untrained:
            self.reporter.message(
                f"{part} has random, untrained weights: its output shows that the line works and means nothing else.", level="warning"
            )
        self.reporter.started(len(self.cohort.refs), self.setup.facts, self.engine.workers)
        from tilestream.runner.ahead import Planner

        with closing(
            Planner(self.cohort, self.setup, self.recipes, self.claims, self.looked, self.summary, self.engine, self.news)
        ) as planner:
            self.summary.wall.enter("planning")
            try:
                self._drive(planner)
            finally:
                self.summary.wall.enter("shutting down")
                for slide in self.in_work:
                    with suppress(OSError):  # that ended the run, perhaps
                        slide.note_spent(self.cohort.output)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _drive(self, planner: Planner) -> None:
        """Hand out work and book what came of it until no slide is left."""
        hand_out = self.hand_out
        first: float | None = None
        while True:
            while (job := hand_out.next(partial(self._begin_next, planner), lambda: planner.over)) is not None:
                first = first or time.perf_counter()
                self.engine.submit(job, job.stage.work, job.task, job.shards)
            if hand_out.in_flight == 0 and planner.over:
                break
            part, ready = EMBEDDING if hand_out.embedding else "finishing" if hand_out.in_flight else "planning", self.engine.workers
            self.summary.wall.enter(part if ready else "starting", min(hand_out.embedding, ready))
            ended = self.engine.wait_next(10.0)
            self._say_news()
            self.hear_progress()
            self.summary.workers = max(self.summary.workers, ready)
            if ended is None:  # there is news, or time has passed
                continue
            hand_out.ended(ended[0])
            hand_out.add(self._receive(*ended))
            self.summary.embed_seconds = time.perf_counter() - (first or 0.0)

    def _begin_next(self, planner: Planner) -> list[Job]:
        """The first jobs of the next slide that has any and is planned by now."""
        while (planned := planner.take()) is not None:
            if jobs := self._begin(planned):
                return jobs
        return []

    def _say_news(self) -> None:
        """Say what planning has met while it goes on."""
        while self.news:
            self.reporter.message(self.news.popleft(), level="warning")

    def hear_progress(self) -> None:
        """Hand on what tasks of slides in work tell of how far they are."""
        ours = {(slide.task.slide, slide.task.token): slide for slide in self.in_work}
        while self.engine.told:
            told = self.engine.told.popleft()
            if slide := ours.get((told.slide, told.token)):
                earlier = slide.aside.get(told.first_shard, 0)
                self.reporter.embedded(told.slide, told.first_shard, told.tiles - earlier, told.kept - earlier)

    def _receive(self, job: Job, outcome: Outcome) -> list[Job]:
        """Book an outcome; the jobs of the slide's next stage where this was the last of its stage."""
        slide = job.slide
        if outcome.error is not None:
            self._give_up(slide, outcome.error)
            return []
        earlier = sum(slide.aside.get(shard, 0) for shard in job.shards) if outcome.value.counts else 0
        self._book(slide.result, replace(outcome.value, earlier=earlier))
        slide.note_spent(self.cohort.output, NOTE_EVERY)
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
            result.add(report.counts, report.errors)
            self.summary.new_tiles += report.fresh
            self.hand_out.task_seconds = report.seconds.get("compute", 0.0)
            self.reporter.shard_done(report)

    def _complete(self, slide: SlideRun) -> None:
        """All stages of a slide have ended."""
        slide.note_spent(self.cohort.output)
        # As committed: a task that was done again after its worker died, or after an outage, told of a part of its shards only.
        mark = slide.store.complete({})
        slide.result.counts, slide.result.redone = mark["counts"], mark.get("redone", 0)
        slide.result.unanswered = mark.get("unanswered", {})
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

    def _let_go(self, result: SlideResult) -> None:
        """A slide has ended: others may have it, and know why it was refused."""
        self.summary.touched |= note_refusal(self.cohort.output, result, self.cohort.job) or result.status == "done"
        self.claims.release(result.id)

    def _begin(self, planned: Planned) -> list[Job]:
        """Book what came of planning a slide; its first jobs, where there are any."""
        result, begun = planned.result, planned.begun
        if planned.owner:
            if result.id in self.results:
                result.status, result.error = "elsewhere", planned.owner
            return []
        if planned.mark is not None:
            book_finished(result, planned.store, planned.mark, self.reporter, self.images)
            self.claims.release(result.id)
            return []
        self._keep(result)
        for message in planned.messages:
            self.reporter.message(message, level="warning")
        if planned.refused is not None:
            self._refuse(result, planned.refused)
        if begun is None:
            return []
        plan = begun.prepared.plan
        self._warn(result, plan.warnings + same_image(self.images, result.id, plan.info.fingerprint))
        self.summary.projected_bytes = max(self.summary.projected_bytes, begun.prepared.projection.total)
        self._tell_planned(begun, result)
        self.in_work.append(begun.run)
        return begun.jobs

    def _keep(self, result: SlideResult) -> None:
        """Report on a slide, be it another job's."""
        if self.results.setdefault(result.id, result) is result and result not in self.summary.slides:
            self.summary.slides.append(result)

    def _tell_planned(self, begun: Begun, result: SlideResult) -> None:
        """Book what was planned for a slide and what its store holds of it already."""
        slide, committed = begun.prepared, begun.committed
        plan = slide.plan
        for entry in committed.values():
            result.add(entry["counts"], entry.get("errors", {}))
        result.tiles, result.candidates = len(plan), plan.candidates
        result.context = str(slide.context) if slide.context else ""
        result.note = "" if len(plan) else nothing_kept({"geo": plan.info.geo, "tissue_found": plan.mask.any()})
        there = sum(len(plan.tile_row[slide.layout.rows(shard)]) for shard in committed) + sum(begun.run.aside.values())
        self.reporter.planned(plan, slide.projection, len(plan) - there)

    def _warn(self, result: SlideResult, warnings: Sequence[str]) -> None:
        """Say each of a slide's warnings, and keep it for the summary."""
        result.warnings = list(dict.fromkeys(warnings))
        for warning in result.warnings:
            self.reporter.message(f"{result.id}: {warning}", level="warning")
