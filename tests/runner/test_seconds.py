"""Where the seconds of a run went: parts that add up to its wall clock, and a sentence on the largest."""

import json
import subprocess
import sys
import time

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, newest_record
from tilestream.runner.reporter import Reporter
from tilestream.runner.summary import PARTS, SlideResult, Summary
from tilestream.stages.clock import Wall, process_began


def summary(spent, embedding=10.0, starting=2.0, workers=1, device="cpu"):
    """Of a run in which tiles were in work for `embedding` seconds."""
    wall = Wall()
    wall.seconds = {"starting": starting, "embedding": embedding, "finishing": 1.0}
    return Summary("out", {}, [SlideResult("a", "a.svs", seconds=spent)], new_tiles=5, device=device, workers=workers, wall=wall)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "spent",
    [{}, {"compute": 4.0}, {"compute": 4.0, "wait": 9.0, "write": 3.0}, {"compute": 70.0, "context": 3.0}, {"wait": 1.0, "write": 2.0}],
)
def test_parts_are_shared_out_without_loss(spent, workers):
    parts = summary(spent, workers=workers).parts
    assert tuple(parts) == PARTS
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(13.0)
    assert parts["computing"] <= (spent.get("compute", 0.0) + spent.get("context", 0.0)) / workers


@pytest.mark.parametrize(
    ("spent", "given", "words"),
    [
        ({"compute": 9.7, "wait": 0.1}, {"device": "cuda:0 (X)"}, "device busy 75% of 13.0 s: a faster one would help"),
        (
            {"compute": 3.0, "wait": 5.0},
            {"device": "cuda:0 (X)"},
            "reading took 54% of 13.0 s, device busy 23%: the device waited for tiles",
        ),
        ({"compute": 2.0, "context": 7.0}, {}, "processor busy 69% of 13.0 s: the context took most of it"),
        ({"compute": 1.0, "write": 8.0}, {}, "writing took 62% of 13.0 s"),
        ({"compute": 9.0}, {"starting": 40.0}, "starting took 78% of 51.0 s, processor busy 18%"),
    ],
)
def test_the_summary_says_what_took_most_of_the_wall_clock(spent, given, words):
    assert words in summary(spent, **given).bound
    assert Summary("out", {}, []).bound == ""


@pytest.mark.parametrize(
    ("workers", "computing"),
    [([(30.0, 1)], 30.0), ([(30.0, 2)], 30.0), ([(20.0, 1), (10.0, 7)], 30.0), ([(5.0, 4), (20.0, 1)], 25.0), ([(10.0, 3), (10.0, 2)], 20.0)],
)  # fmt: skip
def test_what_workers_computed_is_shared_between_those_that_had_work_while_they_come_and_go(monkeypatch, workers, computing):
    now = [100.0]
    monkeypatch.setattr("tilestream.stages.clock.time.perf_counter", lambda: now[0])
    wall, most, spent = Wall(), 0, 0.0
    for seconds, count in workers:
        wall.enter("embedding", count)
        now[0] += seconds
        most, spent = max(most, count), spent + seconds * count
    wall.enter("ended")
    told = Summary("out", {}, [SlideResult("a", "a.svs", seconds={"compute": spent})], new_tiles=5, workers=most, wall=wall)
    assert told.parts["computing"] == pytest.approx(computing)
    assert sum(told.parts.values()) == pytest.approx(now[0] - 100)


def test_a_wall_clock_is_in_one_part_at_a_time():
    wall = Wall(began=time.perf_counter() - 5)
    for part in ("planning", "embedding", "planning", "ended"):
        wall.enter(part)
    assert set(wall.seconds) == {"starting", "planning", "embedding"}
    assert wall.seconds["starting"] >= 5
    assert min(wall.seconds.values()) >= 0


def test_a_process_began_before_its_first_line():
    told = "import time; first = time.perf_counter(); from tilestream.stages.clock import process_began; print(first - process_began())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert -0.02 < float(done.stdout) < 60  # the kernel counts in hundredths
    assert process_began() <= time.perf_counter()


def test_what_a_shell_did_before_it_handed_its_process_over_is_not_counted():
    told = "import time; from tilestream.stages import clock; clock.LONGEST_START = 0.5; print(time.perf_counter() - clock.process_began())"
    command = ["sh", "-c", 'sleep 2; exec "$@"', "sh", sys.executable, "-c", told]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


def test_the_parts_of_a_run_that_is_interrupted_add_up_to_its_wall_clock(tmp_path):
    class Stops(Reporter):
        def shard_done(self, report):
            raise KeyboardInterrupt

    write_pyramid(tmp_path / "a.tif", make_image(500, 600, seed=1), compression="jpeg", levels=1, mpp=0.5)
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", compute={"shard_tiles": 2}), reporter=Stops())
    wall, record = time.perf_counter() - began, newest_record(tmp_path / "out")
    assert record["seconds"] <= wall
    assert sum(record["seconds_by_part"].values()) == pytest.approx(record["seconds"], rel=0.02, abs=0.02)
    assert record["seconds_by_part"]["computing"] > 0


def test_the_parts_of_a_record_add_up_to_its_wall_clock(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(500, 600, seed=1), compression="jpeg", levels=1, mpp=0.5)
    chosen = config(tmp_path / "a.tif", tmp_path / "out", encoder="patch_embed", context={"window": 4, "depth": 1, "heads": 3}, pool="mean")
    assert tilestream.run(chosen).exit_code == 0
    record = newest_record(tmp_path / "out")
    parts = record["seconds_by_part"]
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(record["seconds"], rel=0.05, abs=0.3)
    assert all(parts[part] > 0 for part in ("starting", "computing", "finishing"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seconds_by_part"] == parts
