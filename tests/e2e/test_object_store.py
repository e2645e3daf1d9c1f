"""Slides read from an object store and outputs written to one: a real S3 server, and what is told when it fails."""

import errno
import io
import json
import logging
import threading
import time
from contextlib import suppress
from unittest.mock import Mock

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from rich.console import Console

import tilestream
from tests.support.images import make_image, write_ome_zarr, write_pyramid
from tests.support.resuming import SECTIONS
from tests.support.runs import config, embed, opened, same_store
from tests.support.stores import begin_store
from tilestream.cli import main
from tilestream.errors import ConfigError, InterruptedRunError, OutputError
from tilestream.runner.progress import print_summary
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.store import object_store
from tilestream.store.folder import Folder
from tilestream.store.ledger import FENCE, WRITERS
from tilestream.store.lock import hold_lock
from tilestream.store.records import unpack
from tilestream.store.slide_store import SlideStore

IMAGE = make_image(760, 820, seed=5)  # 8 x 9 tiles of 96 px


class Server:
    """An S3 server that can be away for a while; what it holds stays."""

    def __init__(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self):
        self.server.stop()

    def again(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{started.port}")
        yield started
    started.stop()


@pytest.fixture(scope="module")
def client(server):
    made = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.port}")
    made.create_bucket(Bucket="lab")
    yield made
    made.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", IMAGE, levels=1)


@pytest.fixture(scope="module")
def local(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    embed(path, folder, compute={"shard_tiles": 10}, **SECTIONS)
    return folder


def ends_equal(output, local):
    found, undisturbed = opened(output, "a"), opened(local, "a")
    assert same_store(found, undisturbed)
    np.testing.assert_array_equal(found.slide_vector, undisturbed.slide_vector)


def main_exit(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def capture_run(path, output):
    """What the command prints on an output that is done."""
    console = Console(file=io.StringIO(), width=200)
    print_summary(run_there(path, output), console)
    return console.file.getvalue()


def run_there(path, output, **compute):
    return embed(path, output, **SECTIONS, compute={"shard_tiles": 10, **compute})


@pytest.mark.slow
def test_an_output_in_a_bucket_holds_what_a_local_one_does(client, path, local):
    assert run_there(path, "s3://lab/same").exit_code == 0
    ends_equal("s3://lab/same", local)
    there, here = Folder("s3://lab/same/a.zarr"), Folder(str(local / "a.zarr"))
    assert there.names() == here.names()
    assert there.get("tables/tiles/X/c/3/0") == here.get("tables/tiles/X/c/3/0")
    assert Folder("s3://lab/same").get(".tilestream/run.lock") is None
    assert run_there(path, "s3://lab/same").new_tiles == 0


@pytest.mark.slow
def test_a_slide_and_a_cohort_in_a_bucket_are_read_like_local_ones(client, path, local, tmp_path):
    run_there(path, "s3://lab/read")
    client.put_object(Bucket="lab", Key="read/theirs.zarr/zarr.json", Body=b'{"zarr_format": 3, "node_type": "group"}')
    there, here = tilestream.open("s3://lab/read"), tilestream.open(local)
    assert there.ids == here.ids == ["a"]
    for slide, other in ((there["a"], here["a"]), (there, here)):
        table, expected = slide.to_anndata(ok_only=True), other.to_anndata(ok_only=True)
        np.testing.assert_array_equal(table.X, expected.X)
        assert list(table.obs_names) == list(expected.obs_names)
        assert slide.obs.equals(other.obs)
        np.testing.assert_array_equal(slide.to_dask().compute(), other.to_dask().compute())
    assert "view s3://lab/read" in capture_run(path, "s3://lab/read")
    assert main_exit("verify", "s3://lab/read") == 0
    assert main_exit("export", "s3://lab/read", "--to", "csv", "--out", f"{tmp_path}/") == 0
    assert main_exit("export", "s3://lab/read", "--to", "csv", "--out", f"{tmp_path}/") == 0  # its own file


def test_what_lies_in_the_way_in_a_bucket_is_refused(client, path):
    for key, body in (("way/a.zarr/notes.txt", b"theirs"), ("file/a.zarr", b"theirs"), ("name/run.json", b"{}"), ("zarr/.zgroup", b"{}")):
        client.put_object(Bucket="lab", Key=key, Body=body)
        output = key.split("/", 1)[0]
        with pytest.raises(ConfigError, match=f"output: s3://lab/{output}"):
            run_there(path, f"s3://lab/{output}")
        assert Folder("s3://lab").names(f"{output}/") == [key]


@pytest.mark.slow
def test_worker_processes_write_to_a_bucket(client, path, local):
    assert run_there(path, "s3://lab/workers", scheduler="local", workers=2).exit_code == 0
    ends_equal("s3://lab/workers", local)


@pytest.mark.slow
def test_damage_in_a_bucket_is_found_and_mended(client, path, local, capsys):
    run_there(path, "s3://lab/hurt")
    key = "hurt/a.zarr/tables/tiles/X/c/"
    client.delete_object(Bucket="lab", Key=f"{key}3/0")
    client.put_object(Bucket="lab", Key=f"{key}5/0", Body=b"no chunk")
    with pytest.raises(SystemExit) as ended:
        main(["verify", "s3://lab/hurt", "--repair"])
    assert ended.value.code == 4
    words = capsys.readouterr().out
    assert "tables/tiles/X/c/3/0" in words
    assert "tables/tiles/X/c/5/0" in words
    assert run_there(path, "s3://lab/hurt").new_tiles == 20
    ends_equal("s3://lab/hurt", local)


@pytest.mark.slow
def test_a_server_that_goes_away_interrupts_and_the_same_run_resumes(server, client, path, local):
    sections = SECTIONS | {"encoder": "tests.support.encoders:slow_corners"}
    run = config(path, "s3://lab/away", **sections, compute={"shard_tiles": 10, "batch_size": 2, "threads": 1})
    folder = Folder("s3://lab/away/a.zarr")

    def leave():
        while not folder.names(".tilestream/shards"):
            time.sleep(0.02)
        server.stop()

    leaving = threading.Thread(target=leave)
    leaving.start()
    try:
        with pytest.raises(InterruptedRunError, match=r"cannot be written or read: .+ mend the disk or the connection"):
            tilestream.run(run)
    finally:
        leaving.join()
        server.again()
    client.delete_object(Bucket="lab", Key="away/.tilestream/run.lock")  # could not be deleted then
    assert 0 < tilestream.run(run).new_tiles < 72
    ends_equal("s3://lab/away", local)


def test_an_output_that_cannot_be_reached_is_refused_before_any_work(client, path, capsys):
    with pytest.raises(ConfigError, match=r"output: s3://nowhere/out cannot be reached: .*NoSuchBucket"):
        run_there(path, "s3://nowhere/out")
    with pytest.raises(ConfigError, match=r"output: nothing://lab/out is no URL of an object store"):
        run_there(path, "nothing://lab/out")
    with pytest.raises(SystemExit) as ended:
        main(["verify", "s3://nowhere/out"])
    assert ended.value.code == 5
    assert "NoSuchBucket" in capsys.readouterr().err
    for command in (["verify", "s3://lab/nothing"], ["inspect", "s3://lab/none.zarr"], ["inspect", "s3://nowhere/none.zarr"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 3
        assert command[1] in capsys.readouterr().err


def test_one_process_at_a_time_has_a_slide_in_a_bucket(client, monkeypatch):
    output = Folder("s3://lab/locked")
    with hold_lock(output, "a"), pytest.raises(OutputError, match="is in use by process"), hold_lock(output, "a"):
        pass
    # Another process takes the slide between this one's look and its own taking of it.
    refused = output.put_new
    monkeypatch.setattr(output, "put_new", lambda key, data: other.__enter__() is not None or refused(key, data))
    other = hold_lock(Folder("s3://lab/locked"), "a")
    with pytest.raises(OutputError, match="is in use by process"), hold_lock(output, "a"):
        pass
    other.__exit__(None, None, None)
    assert output.names() == []
    monkeypatch.undo()
    with hold_lock(output, "a"):  # the server fails another process as it tries to take the slide
        other = Folder("s3://lab/locked")
        monkeypatch.setattr(other, "put_new", Mock(side_effect=OSError(errno.EIO, "away")))
        with pytest.raises(OutputError, match="is in use"), hold_lock(other, "a"):
            pass
        assert output.names() == [".tilestream/claims/a.json"]
    output.put(".tilestream/claims/a.json", b'{"host": ')  # its owner died as it wrote
    with hold_lock(output, "a"):
        pass


@pytest.mark.slow
def test_an_image_in_a_bucket_is_read_as_a_local_one(client, tmp_path):
    image = write_ome_zarr(tmp_path / "a.zarr", IMAGE, levels=2)
    for file in image.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "lab", f"slides/{file.relative_to(tmp_path).as_posix()}")
    with open_source("s3://lab/slides/a.zarr", SourceOptions()) as there, open_source(str(image), SourceOptions()) as here:
        assert there.info.levels == here.info.levels
    run_there("s3://lab/slides/a.zarr", tmp_path / "there")
    run_there(image, tmp_path / "here")
    ends_equal(tmp_path / "there", tmp_path / "here")


def fenced(address):
    store = SlideStore(Folder(address))
    begin_store(store, 4, 5, 20, {"tiles": "recipe"}, 0)
    return store


def test_a_fence_is_up_once_no_task_of_an_earlier_run_commits_any_more(client):
    store = fenced("s3://lab/fenced/a.zarr")
    old, new = (SlideStore(store.folder, token) for token in ("old", "new"))
    old.raise_fence()
    order, inside, go_on = [], threading.Event(), threading.Event()

    def commit():
        with suppress(OutputError), old.committing():  # it is told in the end that others own the store by now
            inside.set()
            go_on.wait(30)
            old.record("tiles", 0, [], {"counts": {"ok": 1}})
            order.append("committed")

    def raise_fence():
        new.raise_fence()
        order.append("raised")

    threads = [threading.Thread(target=work) for work in (commit, raise_fence)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    while unpack(store.folder.get(FENCE)) != {"token": "new"}:  # it is put up, and waits
        pass
    with pytest.raises(OutputError, match="belongs to a later run"), old.committing():
        pass
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert order == ["committed", "raised"]
    assert 0 in new.ledger()
    assert store.folder.names(WRITERS) == []


def test_marks_of_dead_writers_run_out(client, monkeypatch):
    store = fenced("s3://lab/marks/a.zarr")
    own = json.dumps(object_store._own_process())
    gone = json.dumps({**json.loads(own), "pid": 2**22 + 1})
    for name, data in {"dead here": gone, "silent elsewhere": gone.replace('"host": "', '"host": "not-'), "broken": "{"}.items():
        store.folder.put(f"{WRITERS}/{name}.json", data.encode())
    monkeypatch.setattr(object_store, "LEASE", 0.5)
    began = time.monotonic()
    SlideStore(store.folder, "new").raise_fence()
    assert (store.folder.names(WRITERS), time.monotonic() - began > 0.5) == ([], True)


def test_a_writer_that_lives_and_does_not_end_is_told(client, monkeypatch):
    store = fenced("s3://lab/hung/a.zarr")
    monkeypatch.setattr(object_store, "LEASE", 0.3)
    monkeypatch.setattr("tilestream.store.folder.PATIENCE", 0.6)
    with store.folder.marked(WRITERS), pytest.raises(OutputError, match=r"a process has been writing for 0\.6 s"):
        SlideStore(store.folder, "new").raise_fence()
