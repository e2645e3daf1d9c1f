"""The contract of a kind of heads: what a worker does, in how many units, and what that takes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.slide_task import Report, SlideTask
from tilestream.store.layout import Layout
from tilestream.store.slide_store import SlideStore


class HeadKind(ABC):
    """How heads of one kind are worked. Stateless: tasks carry it to other processes.

    A slide is cut into units. Each is worked, committed and resumed as a whole, and its bytes do not depend on who does it, when, or with which others.
    """

    together = 1
    """Units of a task."""
    finishes = False
    """Whether `finish` is to be called."""

    @abstractmethod
    def units(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """Units of a slide."""

    @abstractmethod
    def work(self, task: SlideTask, units: range) -> Report:
        """Do those units of the head `task.head` that are not in `store.ledger(head_stage(task.head))` yet.

        Each is committed by `store.write_rows` with `head_stage(task.head)`, or by `store.commit_objects`.
        """

    @abstractmethod
    def memory(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """Bytes that a worker holds at once for it, weights included."""

    @abstractmethod
    def output(self, task: SlideTask, facts: HeadFacts, layout: Layout) -> int:
        """Bytes of what it leaves in the store, before compression."""

    def make(self, task: SlideTask, facts: HeadFacts, store: SlideStore) -> None:
        """Write what its units need to find: called by the driver whenever a slide's units are about to be worked, with the same bytes each time."""
        return

    def finish(self, task: SlideTask, units: range) -> Report:
        """Called by one worker once all units are committed, where it `finishes`; commits itself as unit `units.start`, the one behind the last."""
        raise NotImplementedError
