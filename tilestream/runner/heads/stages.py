"""The stages of heads, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

from tilestream.stages.heads.dense.token_blocks import streamed_bytes, streamed_heads
from tilestream.stages.heads.kinds import KINDS
from tilestream.stages.slide_task import Report, SlideTask
from tilestream.store.heads.columns import head_stage
from tilestream.store.layout import Layout
from tilestream.store.slide_store import SlideStore


@dataclass(frozen=True)
class Stage:
    """One stage of a slide: what a worker does, and the shards, or units of a head, of each of its tasks."""

    work: Callable[[SlideTask, range], Report]
    parts: list[range]
    head: str = ""
    """The head that it is of."""
    beside: bool = False
    """Whether the next stage may start together with it."""


def head_stages(task: SlideTask, store: SlideStore, workers: int = 1) -> Iterator[Stage]:
    """What is left to do for a slide's heads; what they read is there by then. `workers` is how many there are for this slide."""
    layout = store.layout
    for facts in task.line.heads:
        kind, own, name = KINDS[facts.head.kind], replace(task, head=facts.name), facts.name
        kind.make(own, facts, store)
        count, stage = kind.units(own, facts, layout), head_stage(name)
        together = max(1, min(kind.together, -(-count // workers)))
        yield Stage(kind.work, list(_missing(count, store.ledger(stage), together)), name)
        if kind.finishes and count not in store.ledger(stage):
            yield Stage(kind.finish, [range(count, count + 1)], name)


def make_streamed(task: SlideTask, store: SlideStore) -> None:
    """Write the metadata of the heads that are made of tokens which pass by."""
    for facts in streamed_heads(task.line, store.layout):
        KINDS[facts.head.kind].make(replace(task, head=facts.name), facts, store)


def _missing(count: int, done: Container[int], together: int) -> Iterator[range]:
    """Runs of units that are not done, of at most `together`."""
    start: int | None = None
    for unit in range(count + 1):
        wanted = unit < count and unit not in done
        if start is not None and (not wanted or unit - start == together):
            yield range(start, unit)
            start = None
        if wanted and start is None:
            start = unit


def heads_memory(task: SlideTask, layout: Layout) -> int:
    """Bytes that heads add to a worker: the largest one at work, tokens that are kept while they pass by, and the weights of the others."""
    needs = [KINDS[facts.head.kind].memory(replace(task, head=facts.name), facts, layout) for facts in task.line.heads]
    passing = sum(streamed_bytes(task, facts, layout) for facts in streamed_heads(task.line, layout))
    return max(needs, default=0) + passing + sum(facts.bytes for facts in task.line.heads)


def heads_output(task: SlideTask, layout: Layout) -> dict[str, int]:
    """Bytes that each head leaves in a slide's store, before compression."""
    return {facts.name: KINDS[facts.head.kind].output(replace(task, head=facts.name), facts, layout) for facts in task.line.heads}
