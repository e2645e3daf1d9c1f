"""Stages with recipes of their own, fences, failed tiles, the record of runs, and metadata as safe as data."""

import json
import shutil

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given, newest_record, opened
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, OutputError
from tilestream.runner.reporter import Reporter
from tilestream.store.records import pack, unpack
from tilestream.store.slide_store import SlideStore

CONTEXT = {"window": 4, "depth": 1, "heads": 3}
WINDOWS = {"output": {"save": ["tiles", "slide", "windows"]}, "windows": {"sides": [2]}}


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"pool": "max"}), ({}, {"context": CONTEXT}), ({"context": CONTEXT}, {"context": {**CONTEXT, "depth": 2}}), ({}, WINDOWS),
        (WINDOWS, {**WINDOWS, "windows": {"sides": [3, 6]}}), ({"pool": "none"}, {"pool": "mean"}),
    ],
)  # fmt: skip
def test_a_later_stage_that_is_new_or_other_is_done_alone_and_ends_as_in_a_new_output(image, tmp_path, before, after):
    tilestream.run(given(image, tmp_path / "out", **before))
    rows = bytes_of(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X")
    summary = tilestream.run(given(image, tmp_path / "out", **after))
    assert (summary.new_tiles, summary.exit_code) == (0, 0)
    assert bytes_of(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X") == rows
    tilestream.run(given(image, tmp_path / "anew", **after))
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "anew" / "a.zarr")


def test_a_stage_that_is_left_out_stays_with_its_recipe(image, tmp_path):
    tilestream.run(given(image, tmp_path / "out", context=CONTEXT))
    summary = tilestream.run(given(image, tmp_path / "out"))
    found = opened(tmp_path / "out", "a")
    assert (summary.new_tiles, found.context is None, found.recipe["context"]["depth"], found.recipe["pool"]["of"]) == (
        0,
        False,
        1,
        "tiles",
    )


def test_restart_of_a_stage_redoes_it_and_what_is_made_of_it(image, tmp_path, capsys):
    settings = given(image, tmp_path / "out", context=CONTEXT)
    tilestream.run(settings)
    before = bytes_of(tmp_path / "out" / "a.zarr")
    done = [
        set(tilestream.run(settings, restart=stage).slides[0].seconds) & {"context", "pool", "compute"} for stage in ("pool", "context")
    ]
    assert done == [{"pool"}, {"context", "pool"}]
    assert bytes_of(tmp_path / "out" / "a.zarr") == before
    with pytest.raises(ConfigError, match="--restart: 'pools' is no stage"):
        tilestream.run(settings, restart="pools")
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    for arguments, new in ((["--restart", "pool", str(tmp_path / "c.yaml")], 0), (["--restart", str(tmp_path / "c.yaml")], 64)):
        with pytest.raises(SystemExit) as ended:
            main(["run", *arguments])
        assert not ended.value.code
        assert newest_record(tmp_path / "out")["new_tiles"] == new


class Stop(Reporter):
    def shard_done(self, report):
        raise KeyboardInterrupt


def test_a_task_of_an_earlier_run_commits_nothing_any_more(tmp_path):
    store = make_store(tmp_path / "a.zarr", finish=False)
    old, new = (SlideStore(store.folder, token) for token in ("old", "new"))
    old.raise_fence()
    rows = {"tables/tiles/X": np.ones((20, 6), np.float32)}
    old.write_shard(0, rows, {"counts": {"ok": 20}})
    new.raise_fence()
    for shut_out in (old, store):
        with pytest.raises(OutputError, match="belongs to a later run"):
            shut_out.write_shard(0, {"tables/tiles/X": np.zeros((20, 6), np.float32)}, {"counts": {"ok": 20}})
        with pytest.raises(OutputError, match="belongs to a later run"):
            shut_out.write_picture(b"")
    assert (new.array("tables/tiles/X")[:] == 1).all()
    new.complete({})
    with pytest.raises(OutputError, match="belongs to a later run"):
        SlideStore(store.folder, "new").write_shard(0, rows, {"counts": {}})


def test_failed_tiles_keep_their_causes_and_are_done_again_when_asked(image, tmp_path, monkeypatch, capsys):
    settings = given(image, tmp_path / "out", encoder="tests.support.encoders:fails_while_told")
    monkeypatch.setenv("TILESTREAM_TEST_FAIL", "yes")
    first = tilestream.run(settings)
    assert (first.exit_code, first.failed_tiles) == (4, 64)
    state, before = json.loads((tmp_path / "out" / "run.json").read_text()), bytes_of(tmp_path / "out")
    assert "not finite" in state["slides"][0]["tile_errors"]["0"]
    monkeypatch.delenv("TILESTREAM_TEST_FAIL")
    heard = []
    reporter = Reporter()
    reporter.message = lambda text, level="info": heard.append(text)
    monkeypatch.setattr("tilestream.runner.driver.open_engine", None)  # an idle run starts nothing
    idle = tilestream.run(settings, reporter=reporter)
    monkeypatch.undo()
    assert (idle.exit_code, bytes_of(tmp_path / "out")) == (4, before)
    assert heard[-1].startswith("nothing to do; 64 tiles failed earlier: the encoder's output is not finite")
    assert "--retry-failed" in heard[-1]
    again = tilestream.run(settings, retry_failed=True)
    assert (again.exit_code, again.failed_tiles, again.new_tiles) == (0, 0, 64)
    state = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (state["failed_tiles"], state["slides"][0]["tile_errors"]) == (0, {})


def state_of(output, *without):
    slides = json.loads((output / "run.json").read_text())["slides"]
    return [{key: value for key, value in slide.items() if key not in without} for slide in slides]


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [{}, {"stride": 40}, {"edge": "drop"}, {"tissue": "otsu"}], ids=str)
def test_the_state_tells_of_a_slide_what_it_told_before_another_run_found_it_done(image, tmp_path, tiles):
    other = write_pyramid(tmp_path / "b.tif", make_image(300, 300, 2), compression="deflate", levels=1, mpp=0.5)
    both, out = [str(image), str(other)], tmp_path / "out"
    settings = given(image, out)
    settings["tiles"] |= tiles
    calm = settings | {"slides": both, "output": {**settings["output"], "path": str(tmp_path / "calm")}}
    tilestream.run(calm)
    tilestream.run(settings)
    first = state_of(out)
    assert first[0]["candidates"] >= first[0]["tiles"] > 0
    assert first[0]["seconds"]["compute"] > 0
    tilestream.run(settings | {"slides": both})
    assert state_of(out)[0] == first[0]
    assert state_of(out, "seconds") == state_of(tmp_path / "calm", "seconds")
    (out / "run.json").unlink()  # of a run that was killed, nobody knows what it took
    shutil.rmtree(out / "b.zarr")
    tilestream.run(settings | {"slides": both})
    assert state_of(out, "seconds", "context") == state_of(tmp_path / "calm", "seconds", "context")


def test_records_are_added_and_the_state_is_of_all_slides(image, tmp_path):
    write_pyramid(tmp_path / "b.tif", make_image(300, 300, 2), compression="deflate", levels=1, mpp=0.5)
    tilestream.run(given(image, tmp_path / "out"))
    first = bytes_of(tmp_path / "out" / "runs")
    tilestream.run(given(tmp_path / "b.tif", tmp_path / "out"))
    after = bytes_of(tmp_path / "out" / "runs")
    assert len(after) == 2
    assert first.items() <= after.items()
    assert [slide["id"] for slide in json.loads((tmp_path / "out" / "run.json").read_text())["slides"]] == ["a", "b"]
    everything = bytes_of(tmp_path / "out")
    with pytest.raises(OutputError, match="another recipe"):
        tilestream.run(given(image, tmp_path / "out", tiles={"size": 96}))
    assert bytes_of(tmp_path / "out") == everything


def test_partial_objects_are_ignored_and_removed(image, tmp_path):
    settings = given(image, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(settings, reporter=Stop())
    left = tmp_path / "out" / "a.zarr" / ".tilestream" / "shards" / f"tiles-000001.{'0' * 32}.partial"
    left.write_bytes(b'{"obj')
    assert tilestream.run(settings).exit_code == 0
    assert not left.exists()


@pytest.mark.parametrize("name", ["obs/x/c/0", "obs/y/zarr.json", "X/zarr.json", "obs/x"])
def test_metadata_that_a_power_cut_took_is_written_again(image, tmp_path, name):
    settings = given(image, tmp_path / "out")
    tilestream.run(given(image, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(settings, reporter=Stop())
    lost = tmp_path / "out" / "a.zarr" / "tables" / "tiles" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert tilestream.run(settings).exit_code == 0
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "whole" / "a.zarr")


def test_a_record_with_a_wrong_byte_reads_as_none():
    raw = pack({"objects": {"a": [3, "0f"]}, "counts": {"ok": 7}})
    assert unpack(raw) == {"objects": {"a": [3, "0f"]}, "counts": {"ok": 7}}
    for k in range(len(raw)):
        for harm in (raw[:k], raw[:k] + bytes([raw[k] ^ 1]) + raw[k + 1 :]):
            assert unpack(harm) is None
