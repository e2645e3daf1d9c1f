"""Slides are planned ahead of need, in order and within a bound, while what earlier slides still need is handed out."""

import threading

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, newest_record
from tilestream.errors import InputError
from tilestream.runner import ahead
from tilestream.runner.reporter import Reporter
from tilestream.store.lock import CLAIMS

SLIDES = "abcde"
GATE = threading.Event()


def from_the_second_on(pixels, um_per_px):
    """All is tissue; planning the second slide and those after it waits at the gate."""
    if pixels[0, 0, 0] == 0:
        assert GATE.wait(60)
    return np.ones(pixels.shape[:2], bool)


def black_cornered(path, image, *, corner):
    pixels = image.copy()
    pixels[:64, :64] = 0 if corner else 255
    return write_pyramid(path, pixels, tile=64, levels=1, compression=None)


@pytest.fixture
def cohort(tmp_path):
    GATE.clear()
    image = make_image(128, 192, seed=2)
    return [black_cornered(tmp_path / f"{name}.tif", image, corner=name != "a") for name in SLIDES]


def given(cohort, output, **sections):
    return config(cohort, output, **{"tiles": {"size": 64, "level": 0, "tissue": "none"}, **sections})


class Listener(Reporter):
    """Opens the gate once the first slide is done, and keeps what was claimed and said until then."""

    def __init__(self, output):
        self.output, self.events, self.claimed = output, [], []

    def message(self, text, *, level="info"):
        self.events.append(text)

    def planned(self, plan, projection, remaining):
        self.events.append(("planned", plan.ref.id))

    def slide_done(self, result):
        self.events.append(("ended", result.id))
        if not GATE.is_set():
            self.claimed = sorted(path.stem for path in (self.output / CLAIMS).glob("*.json"))
            GATE.set()


def test_a_slide_is_finished_while_the_next_one_is_planned_and_none_is_claimed_beyond_it(cohort, tmp_path):
    output = tmp_path / "out"
    tissue = {"size": 64, "level": 0, "tissue": "tests.runner.test_ahead:from_the_second_on"}
    listener = Listener(output)
    summary = tilestream.run(given(cohort, output, tiles=tissue), reporter=listener)
    assert summary.exit_code == 0
    assert listener.events.index(("ended", "a")) < listener.events.index(("planned", "b"))
    assert set(listener.claimed) <= {"b"}  # its own is let go of, and no other was taken
    assert not list((output / CLAIMS).glob("*.json"))


def test_plans_that_end_in_another_order_are_told_in_that_of_the_list(cohort, tmp_path, monkeypatch):
    """Four are planned at once, and each waits until all those behind it are through."""
    ended = {name: threading.Event() for name in SLIDES}
    plan = ahead.take_up

    def backwards(store, ref, *arguments):
        prepared = plan(store, ref, *arguments)
        arguments[4](f"{ref.id}: said while it was planned")
        after = chr(ord(ref.id) + 1)
        assert after not in "bcd" or ended[after].wait(60)
        ended[ref.id].set()
        if ref.id == "c":
            raise InputError("c: refused")
        return prepared

    monkeypatch.setattr(ahead, "take_up", backwards)
    monkeypatch.setattr(tilestream.runner.engines.executors.InlineEngine, "in_process", False)
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: range(8))
    listener = Listener(tmp_path / "out")
    GATE.set()
    summary = tilestream.run(given(cohort, tmp_path / "out"), reporter=listener)
    told = [event for event in listener.events if event[0] == "planned" or "said while" in event]
    assert told == [
        event for name in SLIDES for event in (f"{name}: said while it was planned", ("planned", name)) if event != ("planned", "c")
    ]
    assert [(slide.id, slide.status) for slide in summary.slides] == [(name, "refused" if name == "c" else "done") for name in SLIDES]
    assert [slide["id"] for slide in newest_record(tmp_path / "out")["slides"]] == list(SLIDES)
    twice = [slide.id for slide in summary.slides if any("same image" in words for words in slide.warnings)]
    assert twice == ["d", "e"]  # of b, the first of the list; c is not in the output
