"""What is started next: nothing that finishes a slide takes a task's place, and long tasks do not wait behind one another."""

from types import SimpleNamespace

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.runner.engines.executors import InlineEngine
from tilestream.runner.engines.hand_out import LONG_TASK, HandOut


def jobs(names, *, embeds=True):
    slide = SimpleNamespace(given_up=False)
    return [SimpleNamespace(name=name, embeds=embeds, slide=slide) for name in names]


def started(hand_out, slides=()):
    """All that may start now, where these slides are planned and no others follow."""
    slides = list(slides)
    found = []
    while (job := hand_out.next(lambda: slides.pop(0) if slides else [], lambda: not slides)) is not None:
        found.append(job.name)
    return "".join(found)


@pytest.mark.parametrize(("workers", "seconds", "expected"), [(1, 0.1, 4), (1, 60.0, 4), (2, 0.1, 8), (2, LONG_TASK, 4)])
def test_as_many_tasks_are_in_flight_as_keep_workers_busy(workers, seconds, expected):
    hand_out = HandOut(SimpleNamespace(workers=workers, capacity=4 * workers))
    hand_out.task_seconds = seconds
    assert started(hand_out, [jobs("abcdefghijklmnop")]) == "abcdefghijklmnop"[:expected]


def test_the_last_long_tasks_are_handed_out_as_workers_are_free():
    hand_out = HandOut(SimpleNamespace(workers=2, capacity=8))
    hand_out.task_seconds = 60.0
    first = jobs("abcdef")
    assert started(hand_out, [first]) == "abcd"
    for job, expected in zip(first, ["", "", "e", "f", "", ""], strict=True):
        hand_out.ended(job)
        assert started(hand_out) == expected


def test_what_finishes_a_slide_takes_no_place_and_what_follows_goes_before_new_slides():
    hand_out = HandOut(SimpleNamespace(workers=1, capacity=2))
    first, second = jobs("abc"), jobs("xyz")
    assert started(hand_out, [first]) == "ab"
    hand_out.add(jobs("123", embeds=False))
    assert started(hand_out) == "12"
    hand_out.ended(first[0])
    hand_out.add(jobs("m"))
    assert started(hand_out, [second]) == "m"
    hand_out.ended(first[1])
    assert started(hand_out, [second]) == "c"
    assert (hand_out.in_flight, hand_out.embedding) == (4, 2)


def test_jobs_of_a_slide_that_is_given_up_are_passed_over():
    hand_out = HandOut(SimpleNamespace(workers=1, capacity=2))
    given_up = jobs("ab")
    given_up[0].slide.given_up = True
    assert started(hand_out, [given_up + jobs("c")]) == "c"


def test_a_slide_is_pooled_and_drawn_at_once_and_sealed_after_both(tmp_path, monkeypatch):
    order, submit, wait = [], InlineEngine.submit, InlineEngine.wait_next

    def submitting(self, key, function, *arguments):
        order.append(function.__name__)
        submit(self, key, function, *arguments)

    def ending(self, timeout=None):
        ended = wait(self, timeout)
        order.append("ended") if ended is not None else None
        return ended

    monkeypatch.setattr(InlineEngine, "submit", submitting)
    monkeypatch.setattr(InlineEngine, "wait_next", ending)
    image = write_pyramid(tmp_path / "a.tif", make_image(256, 256, seed=2), tile=64, levels=1)
    tiles = {"size": 64, "level": 0, "tissue": "none"}
    summary = tilestream.run(config(image, tmp_path / "out", tiles=tiles, pool="mean", output={"save": ["tiles", "slide", "windows"]}))
    assert summary.exit_code == 0
    assert order == ["embed_tiles", "ended", "pool_slide", "pool_windows", "ended", "draw_slide", "ended", "ended", "finish_slide", "ended"]
