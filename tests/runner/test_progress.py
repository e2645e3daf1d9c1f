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


def test_tiles_in_work_add_to_those_of_tasks_that_ended_and_count_once(reporter):
    plan(reporter, "a", 10_000, 10_000)
    reporter.shard_done(Report("a", range(5), {}, {"ok": 10_000}))
    plan(reporter, "b", 10_000, 10_000)
    reporter.embedded("b", 0, 5_000, 4_000)
    reporter.embedded("b", 3, 2_000, 0)
    assert bar(reporter) == (17_000, 20_000)
    assert "14,000 of 20,000 planned tiles are kept" in reporter.kept_words()
    reporter.shard_done(Report("b", range(3), {}, {"ok": 6_000}))
    assert bar(reporter) == (18_000, 20_000)
    reporter.shard_done(Report("b", range(3, 5), {}, {"ok": 4_000}))
    assert bar(reporter) == (20_000, 20_000)


def test_a_resumed_slide_counts_from_what_was_there(reporter):
    plan(reporter, "b", 10_000, 1_000)
    reporter.embedded("b", 4, 500, 500)
    assert bar(reporter) == (500, 1_000)
    assert "9,500 of 10,000" in reporter.kept_words()
    reporter.shard_done(Report("b", range(4, 5), {}, {"ok": 2_000}, earlier=1_000))
    assert bar(reporter) == (1_000, 1_000)


def test_the_time_left_is_that_of_all_slides_as_far_as_it_can_be_known(reporter, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tilestream.runner.progress.time.perf_counter", lambda: now[0])
    reporter.slides = 4
    reporter.slide_done(SlideResult("done", "", "already done", tiles=7))
    plan(reporter, "a", 100, 100)
    assert reporter.speed_words() == ""
    now[0] = 110.0
    reporter.embedded("a", 0, 50, 0)
    assert reporter.speed_words() == "5 tiles/s, about 50 s left"  # 50 of this slide, and two more slides like it


def test_a_refused_slide_is_named_once() -> None:
    words = "a: refused: tiles.mpp is 0.25, but the file does not say its resolution."
    for error in (
        "tiles.mpp is 0.25, but the file does not say its resolution.",
        "a: tiles.mpp is 0.25, but the file does not say its resolution.",
    ):
        assert slide_words(SlideResult("a", "a.tif", "refused", error=error)) == words
