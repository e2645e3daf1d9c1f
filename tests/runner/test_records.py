"""What an output keeps of its runs: nothing of a job is lost beside another one, nor of a run that was killed."""

import json
import threading
from contextlib import suppress

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tests.support.s3_server import counted_store
from tests.support.stores import make_store
from tilestream.runner import driver
from tilestream.runner.records import state
from tilestream.runner.reporter import Reporter
from tilestream.runner.summary import SlideResult, Summary
from tilestream.store.folder import Folder
from tilestream.store.lock import Claims

JOBS = 3


def slides_of(output):
    return {slide["id"]: slide for slide in json.loads(Folder(str(output)).get("run.json"))["slides"]}


def end_together(address, monkeypatch):
    """Jobs of a slide each that write their records at one moment: each has looked at the output before any other one has written."""
    met, made = threading.Barrier(JOBS), state.output_state

    def look(*given):
        found = made(*given)
        with suppress(threading.BrokenBarrierError):  # one at a time
            met.wait(1.0)
        return found

    monkeypatch.setattr(state, "output_state", look)

    def end(job):
        spent = SlideResult(f"s{job}", f"/slides/s{job}.svs", "done", seconds={"compute": job + 1.0}, context=f"way {job}")
        state.write_records(Folder(address), Summary(address, {}, [spent]))

    jobs = [threading.Thread(target=end, args=[job]) for job in range(JOBS)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


@pytest.mark.parametrize("place", ["disk", "object store"])
def test_jobs_that_end_at_one_moment_lose_nothing_of_each_other(tmp_path, monkeypatch, place):
    with counted_store():
        address = str(tmp_path) if place == "disk" else "s3://bucket/out"
        for job in range(JOBS):
            made = tmp_path / f"s{job}.zarr"
            make_store(made)
            if place != "disk":
                (Folder(address) / made.name).set_all({str(p.relative_to(made)): p.read_bytes() for p in made.rglob("*") if p.is_file()})
        end_together(address, monkeypatch)
        found = slides_of(address)
    assert {slide: (told["seconds"], told["context"], told["address"]) for slide, told in found.items()} == {
        f"s{job}": ({"compute": job + 1.0}, f"way {job}", f"/slides/s{job}.svs") for job in range(JOBS)
    }


class StopsAfter(Reporter):
    """Ends a run, as a kill does, once so many shards or slides are done; and adds up what tasks said they took."""

    def __init__(self, *, shards=0, slides=0):
        self.shards, self.slides, self.spent = shards, slides, {}

    def shard_done(self, report):
        self.spent[report.slide] = self.spent.get(report.slide, 0.0) + report.seconds.get("compute", 0.0)
        self.shards -= 1
        if self.shards == 0:
            raise KeyboardInterrupt

    def slide_done(self, result):
        self.slides -= 1
        if self.slides == 0:
            raise KeyboardInterrupt


@pytest.fixture
def two(tmp_path):
    """A config of two slides of four shards each."""
    for k, name in enumerate("ab"):
        write_pyramid(tmp_path / f"{name}.tif", make_image(400, 400, k), compression="deflate", levels=1, mpp=0.5)
    images = [tmp_path / "a.tif", tmp_path / "b.tif"]
    return config(images, tmp_path / "out", tiles={"size": 100}, compute={"shard_tiles": 4, "batch_size": 4})


def killed(given, monkeypatch, **when):
    """A run that ends without writing a record; what it spent on each slide."""
    reporter = StopsAfter(**when)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "write_records", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            tilestream.run(given, reporter=reporter)
    return reporter.spent


def test_what_killed_runs_spent_on_slides_is_in_the_state_after_they_are_resumed(two, tmp_path, monkeypatch):
    spent = [killed(two, monkeypatch, shards=2), killed(two, monkeypatch, shards=3)]
    heard = StopsAfter()
    assert tilestream.run(two, reporter=heard).exit_code == 0
    found = slides_of(tmp_path / "out")
    for slide in "ab":
        told = sum(run.get(slide, 0.0) for run in [*spent, heard.spent])
        assert found[slide]["seconds"]["compute"] == pytest.approx(told, abs=1e-4)
        assert found[slide]["seconds"].keys() >= {"compute", "seal"}
    before = (tmp_path / "out" / "run.json").read_bytes()
    assert tilestream.run(two).exit_code == 0
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_what_was_spent_on_rows_that_are_gone_is_not_counted(two, tmp_path):
    tilestream.run(two)
    heard = StopsAfter()
    tilestream.run(two, restart=True, reporter=heard)
    for slide, told in slides_of(tmp_path / "out").items():
        assert told["seconds"]["compute"] == pytest.approx(heard.spent[slide], abs=1e-4)


@pytest.mark.parametrize("earlier", [False, True], ids=["no state", "a state before"])
def test_a_run_that_finds_all_done_brings_the_state_up_to_date_that_a_killed_one_left_behind(two, tmp_path, monkeypatch, earlier):
    if earlier:
        with pytest.raises(KeyboardInterrupt):
            tilestream.run(two, reporter=StopsAfter(slides=1))
    killed(two, monkeypatch, slides=2)  # the last one is done, and nothing says so but its store
    records = len(list((tmp_path / "out").glob("runs/*")))
    assert tilestream.run(two).exit_code == 0
    assert {slide["status"] for slide in slides_of(tmp_path / "out").values()} == {"done"}
    assert all(slide["seconds"]["compute"] > 0 for slide in slides_of(tmp_path / "out").values())
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 0
    assert len(list((tmp_path / "out").glob("runs/*"))) == records


def refused_beside(given, shard, slide, monkeypatch, job):
    """Be job `shard` while another one, `job`, has `slide` in work, which refuses it before this one is through; what this one tells."""
    output = Folder(given["output"]["path"])
    with Claims(output) as other:
        other.take(slide)
        taken = Claims.take

        def take(self, name):
            owner = taken(self, name)
            if owner and name == slide:
                state.note_refusal(output, SlideResult(slide, "x.tif", error="no such file"), job)
                other.release(slide)
            return owner

        monkeypatch.setattr(Claims, "take", take)
        return tilestream.run(given, shard=shard)


def test_a_refused_slide_is_told_by_the_job_that_tried_it_alone(two, tmp_path, monkeypatch):
    (tmp_path / "b.tif").write_bytes(b"no image")
    summary = refused_beside(two, (0, 2), "b", monkeypatch, job=1)
    assert ([slide.id for slide in summary.slides], summary.exit_code) == (["a"], 0)
    monkeypatch.undo()
    again = [tilestream.run(two, shard=(job, 2)) for job in range(2)]
    assert [[slide.id for slide in job.slides] for job in again] == [["a"], ["b"]]
    assert [job.exit_code for job in again] == [0, 3]


def test_a_refused_slide_of_no_share_is_tried_again_by_the_job_that_told_of_it(two, tmp_path):
    images, bad = two["slides"], tmp_path / "bad.tif"
    bad.write_bytes(b"no image")
    tilestream.run({**two, "slides": images[:1]}, shard=(0, 2))  # the array began without the others
    first = [tilestream.run({**two, "slides": [*images, str(bad)]}, shard=(job, 2)) for job in range(2)]
    told = [[slide.id for slide in job.slides if slide.status == "refused"] for job in first]
    assert told == [["bad"], []]
    assert [job.exit_code for job in first] == [4, 0]
    bad.write_bytes((tmp_path / "a.tif").read_bytes())
    mended = [tilestream.run({**two, "slides": [*images, str(bad)]}, shard=(job, 2)) for job in range(2)]
    assert [job.exit_code for job in mended] == [0, 0]
    assert slides_of(tmp_path / "out")["bad"]["status"] == "done"
