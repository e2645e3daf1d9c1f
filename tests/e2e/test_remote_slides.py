"""Slides read where they lie, in an object store and on a web server: the rows are those of a local run, bit for bit."""

import json
import os
import shutil

import numpy as np
import pytest

import tilestream
from tests.support.range_server import serving
from tests.support.runs import config, embed, opened
from tests.support.s3_server import s3_bucket
from tilestream.cli import main
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, OutageError, OutputError
from tilestream.runner.reporter import Reporter
from tilestream.sources.storage import ahead, fetching, ranges, remote
from tilestream.stages import slide_task

SLIDE = "CMU-1-Small-Region.svs"
CHOICES = {"tiles": {"size": 96, "level": 0, "tissue": "none"}, "compute": {"shard_tiles": 200}}


@pytest.fixture(scope="module")
def folder(slides, tmp_path_factory):
    made = tmp_path_factory.mktemp("slides")
    shutil.copyfile(slides / SLIDE, made / SLIDE)
    return made


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("local")
    assert embed(folder / SLIDE, output, **CHOICES).exit_code == 0
    return opened(output, "CMU-1-Small-Region")


@pytest.fixture(scope="module")
def web(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(folder):
    with s3_bucket("lab") as client:
        client.upload_file(str(folder / SLIDE), "lab", f"a b/{SLIDE}")
        yield client


def rows_equal(output, local):
    found = opened(output, "CMU-1-Small-Region")
    np.testing.assert_array_equal(found.embeddings[:], local.embeddings[:])
    np.testing.assert_array_equal(found.slide_vector, local.slide_vector)
    assert found.obs.equals(local.obs)


def test_a_slide_in_a_bucket_gives_the_rows_of_the_local_file(bucket, local, tmp_path):
    assert embed(f"s3://lab/a b/{SLIDE}", tmp_path, **CHOICES).exit_code == 0
    rows_equal(tmp_path, local)


def test_a_slide_on_a_web_server_gives_the_rows_of_the_local_file(web, local, tmp_path):
    assert embed(web.url(SLIDE, "?sig=secret"), tmp_path, **CHOICES).exit_code == 0
    rows_equal(tmp_path, local)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]


def test_patterns_and_prefixes_in_a_bucket_are_lists_of_slides(bucket):
    for key in (
        "list/a.svs",
        "list/b.svs",
        "list/notes.txt",
        "list/.hidden.svs",
        "list/deep/c d.svs",
        "list/z.zarr/zarr.json",
        "list/z.zarr/0/c/0",
    ):
        bucket.put_object(Bucket="lab", Key=key, Body=b"x")

    def listed(*slides):
        return [ref.address.removeprefix("s3://lab/list/") for ref in list_slides(slides)]

    assert listed("s3://lab/list/*.svs") == ["a.svs", "b.svs"]
    assert listed("s3://lab/list/") == ["a.svs", "b.svs", "z.zarr"]
    assert listed("s3://lab/list/**/*.svs") == ["a.svs", "b.svs", "deep/c d.svs"]
    assert listed("s3://lab/*/z.zarr", "s3://lab/list/[b]*") == ["z.zarr", "b.svs"]
    assert [ref.id for ref in list_slides(["s3://lab/l*/d*p/*"])] == ["c d"]
    for entry, words in {
        "s3://lab/list/*.ndpi": "nothing matches", "s3://lab/none/": "right below", "s3://l*b/a.svs": "the bucket itself cannot be a pattern",
        "https://host/slides/*.svs": "web servers give no lists",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            list_slides([entry])
    with pytest.raises(OutageError, match=r"s3://other cannot be listed: The specified bucket does not exist \(NoSuchBucket\)"):
        list_slides(["s3://other/*"])


def test_staged_slides_give_the_same_rows_and_leave_nothing(web, local, tmp_path):
    stage = tmp_path / "stage"
    assert embed(web.url(SLIDE), tmp_path / "out", **CHOICES, source={"stage": str(stage), "stage_limit": "1GB"}).exit_code == 0
    rows_equal(tmp_path / "out", local)
    assert [path.name for path in (stage / "tilestream-stage").iterdir()] == ["lock"]
    assert embed(web.url(SLIDE), tmp_path / "out", **CHOICES).new_tiles == 0  # the recipe knows no stage


class Then(Reporter):
    """Does something once the first shard is done."""

    def __init__(self, act):
        self.acts = [act]

    def shard_done(self, report):
        if self.acts:
            self.acts.pop()()


@pytest.fixture
def late(folder, tmp_path, monkeypatch):
    """A server of the test's own; of a slide on it, little is fetched ahead of its shards."""
    monkeypatch.setattr(fetching, "PAUSES", (0.0,))
    monkeypatch.setattr(slide_task, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 100_000)
    monkeypatch.setattr(remote, "HEAD_BYTES", 1000)
    monkeypatch.setattr(ranges, "WINDOW", 50_000)
    (tmp_path / "own").mkdir()
    shutil.copyfile(folder / SLIDE, tmp_path / "own" / SLIDE)
    with serving(tmp_path / "own") as server:
        yield server


def given(server, tmp_path):
    return config(server.url(SLIDE), tmp_path / "out", **{**CHOICES, "compute": {"shard_tiles": 50}})


def test_an_object_replaced_during_a_run_refuses_the_slide_and_rows_are_never_mixed(late, tmp_path):
    def replace():
        path = late.folder / SLIDE
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(1, 1))

    summary = tilestream.run(given(late, tmp_path), reporter=Then(replace))
    assert summary.exit_code in (3, 4)
    assert "changed while it was being read" in summary.slides[0].error
    with pytest.raises(OutputError, match=r"are not those that .* was made from \(source\.fingerprint\)"):
        tilestream.run(given(late, tmp_path))


def test_a_server_that_fails_for_long_ends_the_run_which_resumes_to_the_same_rows(late, local, tmp_path):
    def fail():
        late.fault = lambda *_: "500"

    with pytest.raises(OutageError, match=r"its storage does not answer: .*500.*No tile was given up") as told:
        tilestream.run(given(late, tmp_path), reporter=Then(fail))
    assert told.value.exit_code == 5
    late.fault = lambda *_: ""
    assert tilestream.run(given(late, tmp_path)).exit_code == 0
    rows_equal(tmp_path / "out", local)


@pytest.mark.parametrize("fault", ["500", "cut", "wrong_range"])
def test_failures_that_pass_change_no_row(web, local, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(web, "fault", lambda number, _: fault if number % 3 == 1 else "")
    assert embed(web.url(SLIDE), tmp_path, **CHOICES).exit_code == 0
    rows_equal(tmp_path, local)


def test_inspect_and_plan_read_urls(web, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", web.url(SLIDE)])
    assert ended.value.code == 0
    assert "2967" in capsys.readouterr().out
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config(web.url(SLIDE, "?sig=secret"), tmp_path / "out", **CHOICES)))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(file)])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err
