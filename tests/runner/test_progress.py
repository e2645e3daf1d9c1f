"""Progress counts each tile once, whether its task told of it or the store showed it."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tilestream.runner.progress import LiveReporter, slide_words
from tilestream.runner.summary import SlideResult
from tilestream.stages.slide_task import Report


class Planned(SimpleNamespace):
    """As much of a plan as a reporter asks for."""

    def __len__(self):
        return self.count


@pytest.fixture
def reporter():
    return LiveReporter(Console(file=io.StringIO()))


def plan(reporter, slide, tiles, remaining):
    level = SimpleNamespace(downsample=1.0)
    spec = SimpleNamespace(level=0, resampled=False)
    planned = Planned(ref=SimpleNamespace(id=slide), candidates=tiles, spec=spec, info=SimpleNamespace(levels=[level]), count=tiles)
    reporter.planned(planned, SimpleNamespace(total=0), remaining)


def bar(reporter):
    return reporter.progress.tasks[0].completed, reporter.progress.tasks[0].total


def test_a_long_pass_adds_to_the_slides_before_it_and_does_not_count_twice(reporter):
    plan(reporter, "a", 10_000, 10_000)
    reporter.shard_done(Report("a", range(5), {}, {"ok": 10_000}))
    plan(reporter, "b", 10_000, 10_000)
    reporter.advanced("b", 9_000)
    assert bar(reporter) == (19_000, 20_000)
    reporter.shard_done(Report("b", range(3), {}, {"ok": 6_000}))  # of two tasks; the other is in work
    assert bar(reporter) == (19_000, 20_000)
    reporter.shard_done(Report("b", range(3, 5), {}, {"ok": 4_000}))
    assert bar(reporter) == (20_000, 20_000)


def test_a_resumed_pass_counts_from_what_was_there(reporter):
    plan(reporter, "b", 10_000, 1_000)
    reporter.advanced("b", 9_500)
    assert bar(reporter) == (500, 1_000)


def test_a_refused_slide_is_named_once() -> None:
    words = "a: refused: tiles.mpp is 0.25, but the file does not say its resolution."
    for error in (
        "tiles.mpp is 0.25, but the file does not say its resolution.",
        "a: tiles.mpp is 0.25, but the file does not say its resolution.",
    ):
        assert slide_words(SlideResult("a", "a.tif", "refused", error=error)) == words
