"""Slides are planned ahead of need, in threads of the driver's process: the loop that hands out work takes what is ready."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tilestream.config.restart import ALL
from tilestream.config.slide_list import SlideRef
from tilestream.encoders.factories import code_sha256
from tilestream.errors import InputError, InterruptedRunError
from tilestream.runner.cohort import Cohort, open_slide
from tilestream.runner.compiling import CompileChoice
from tilestream.runner.engines.engine import Engine
from tilestream.runner.heads.stored import StoredImage, lacks_answers_only
from tilestream.runner.pipeline import Job, SlideRun, stages_of
from tilestream.runner.prepare import PreparedSlide, Setup
from tilestream.runner.recipe import Recipes
from tilestream.runner.records.state import refusal_of, spent_on
from tilestream.runner.resume import Looked, finished, plan_first, refuse_other_code, take_up
from tilestream.runner.slide_plan import Seen
from tilestream.runner.summary import SlideResult, Summary
from tilestream.sources.base import Source
from tilestream.stages.embed_tiles import compile_ahead
from tilestream.stages.encoding.aside import tiles_aside
from tilestream.stages.shares import plans_here
from tilestream.stages.slide_task import outlast_outages
from tilestream.store.lock import Claims
from tilestream.store.slide_store import SlideStore

MOST_AT_ONCE = 4
"""Slides that are planned at the same time, at most."""


@dataclass(frozen=True)
class Begun:
    """A slide that is planned and whose store is ready to be filled."""

    run: SlideRun
    prepared: PreparedSlide
    committed: dict[int, Any]
    """What its store held already."""
    jobs: list[Job]
    """Those of its first stage."""


@dataclass(frozen=True)
class Planned:
    """What came of a slide whose turn it was; nothing of it is told or booked yet."""

    ref: SlideRef
    result: SlideResult
    store: SlideStore
    owner: str = ""
    """Words on who has the slide; empty where it is ours."""
    mark: dict[str, Any] | None = None
    """Its completion, where another job finished it in the meantime."""
    begun: Begun | None = None
    refused: InputError | None = None
    messages: list[str] = field(default_factory=list)
    """What is to be said of it."""


class Planner:
    """Plans the slides of a run, each in a thread of its own, and gives them out in the order of the list.

    Slides that others have are looked at once more when all others are through. A slide is claimed when its planning begins.

    Memory bound
    ------------
    `at_once` plans are made or lie ready, no more: each takes what `SlidePlan.planning_bytes` says until it is made, `kept_bytes` from then on.
    """

    def __init__(
        self, cohort: Cohort, setup: Setup, recipes: Recipes, claims: Claims, looked: Looked, summary: Summary, engine: Engine,
        news: deque[str],
    ) -> None:  # fmt: skip
        self.cohort, self.setup, self.recipes, self.claims, self.summary, self.engine = cohort, setup, recipes, claims, summary, engine
        own_code = setup.config.tiles.tissue.function is not None
        cores, cuda = len(os.sched_getaffinity(0)), setup.facts.device.startswith("cuda")
        self.at_once = 1 if own_code else plans_here(on_device=cuda) if engine.in_process else max(1, min(MOST_AT_ONCE, cores // 2))
        """One, where it calls a function of the user's, which need not bear threads."""
        self._results = {result.id: result for result in summary.slides}
        self._news = news
        self._looked, todo = looked, looked.todo
        compile_all = partial(engine.call_all, compile_ahead, setup.settings)
        self._compiles = CompileChoice(setup.settings, setup.facts, len(todo), compile_all, news.append)
        self._token = os.urandom(8).hex()  # of this run, for the fences of the stores that it writes to
        self._todo, self._held, self._again = deque(todo), list[SlideRef](), False
        self._made: deque[Future[Planned | None]] = deque()
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="plan")
        self._stop = threading.Event()

    @property
    def over(self) -> bool:
        """Whether every slide was given out."""
        return not self._made and not self._todo and (self._again or not self._held)

    def take(self) -> Planned | None:
        """The next slide in order, where its plan is made by now; those that follow are begun. Raises what planning raised, but for refusals."""
        self._begin_more()
        while self._made and self._made[0].done():
            planned = self._made.popleft().result()
            if planned is not None and planned.owner and not self._again:
                self._held.append(planned.ref)
                planned = None
            self._begin_more()
            if planned is not None:
                return planned
        return None

    def close(self) -> None:
        """End; plans in the making are made to their end, for their stores are being written."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _begin_more(self) -> None:
        if not self._todo and not self._made and not self._again:
            self._todo, self._again = deque(self._held), True
        while self._todo and len(self._made) < self.at_once:
            future = self._pool.submit(self._plan, self._todo.popleft(), again=self._again)
            self._made.append(future)
            future.add_done_callback(lambda _: self.engine.wake())

    def _plan(self, ref: SlideRef, *, again: bool) -> Planned | None:
        """Take a slide and plan it; None where it is left to others."""
        if self._stop.is_set():
            return None
        if self._others_tell(ref, again=again):
            return None
        result = self._results.get(ref.id) or SlideResult(ref.id, ref.address, listed=dict(ref.extra))
        nothing = Planned(ref, result, SlideStore(self.cohort.output / f"{ref.id}.zarr", self._token))
        if owner := self.claims.take(ref.id):
            return replace(nothing, owner=owner)
        try:
            return outlast_outages(partial(self._plan_ours, nothing), lambda: None, self._pause)
        except InputError as error:
            return replace(nothing, refused=error)

    def _others_tell(self, ref: SlideRef, *, again: bool) -> bool:
        """Whether a slide that is not of this job's share is left to the job that has it, or had it and tells why it was refused."""
        cohort = self.cohort
        if ref in cohort.others:
            if self.claims.abandoned(ref.id):
                return False
            return not again or bool(refusal_of(cohort.output, ref.id).error)  # who had it in the first round let go of it
        return ref in cohort.spare and refusal_of(cohort.output, ref.id).job not in (None, cohort.job)

    def _pause(self, seconds: float) -> None:
        """Wait because an image's storage does not answer."""
        self._news.append(f"an image's storage does not answer; trying again in {seconds:g} s")
        self.engine.wake()
        if self._stop.wait(seconds):
            raise InterruptedRunError("stopped")

    def _plan_ours(self, planned: Planned) -> Planned:
        """Prepare a slide and make its store ready."""
        ref, store = planned.ref, planned.store
        if self.cohort.restart != ALL:
            refuse_other_code(store, ref, encoder := self.setup.config.encoder.name, partial(code_sha256, encoder))
        stored = lacks_answers_only(store, ref, self.recipes, self.cohort)
        if self.setup.stored and not stored:
            raise InterruptedRunError(f"{ref.id}: its store changed while heads were loaded. Run the same command again.")
        with StoredImage(store, ref) if stored else open_slide(ref, self.setup.config) as source:
            if (mark := finished(store, ref, source, self.recipes, self.cohort)) is not None:
                return replace(planned, mark=mark)
            setup = replace(self.setup, workers=self.engine.workers, begins_compiled=self._compiles)
            planning = plan_first(store, ref, source, setup, self.recipes, self.cohort, self._seen_of(ref, source))
            self.summary.touched = True
            prepared = take_up(store, ref, source, setup, self.recipes, self.cohort, planned.messages.append, planning)
        task = prepared.task(setup, store)
        committed = store.ledger()
        aside = {} if prepared.passes else tiles_aside(store, committed)  # a pass makes tokens of all tiles again
        spent = spent_on(self.cohort.output, ref.id) if committed or aside else {}
        stages = stages_of(prepared, setup, store, task, committed)
        run = SlideRun(task, store, planned.result, stages, prepared.passes, aside, spent)
        return replace(planned, begun=Begun(run, prepared, committed, run.next_stage()))

    def _seen_of(self, ref: SlideRef, source: Source) -> Seen | None:
        """What was found out of the first slide already, where its file is still the same."""
        first = self._looked.first
        seen = first.result() if first is not None and ref is self._looked.todo[0] else None
        return seen if seen is not None and seen.tiles.info.fingerprint == source.info.fingerprint else None
