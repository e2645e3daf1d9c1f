"""What a run takes in and lets out: things that are no files, homes and variables, addresses with credentials."""

import functools
import http.server
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import zarr

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed
from tilestream import sources
from tilestream.errors import InputError, TilestreamError
from tilestream.interop.exports import export_slides
from tilestream.sources.base import ImageAddress, SourceOptions
from tilestream.sources.facts.describe import describe_image
from tilestream.viewer.report import write_report

SECRET = "s3cretXYZ"


@pytest.fixture
def slide(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(300, 300, 1), tile=64, levels=1, mpp=0.5)


@pytest.fixture
def bucket(tmp_path):
    """A web server with an image, as (host, port)."""
    array = zarr.create_array(tmp_path / "served" / "a.zarr", shape=(256, 256, 3), chunks=(64, 64, 3), dtype="u1")
    array[:] = make_image(256, 256, 2)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "served")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_home_of_the_user_is_meant_not_a_folder_called_tilde(slide, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLIDES", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert embed("$SLIDES/*.tif", "~/out").exit_code == 0
    assert (tmp_path / "home" / "out" / "a.zarr" / "zarr.json").exists()
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("key", ["slides", "encoder.weights", "context.weights", "pool.weights", "tiles.tissue", "tiles.from"])
@pytest.mark.timeout(60)
def test_a_pipe_as_an_input_ends_at_once_in_our_words(slide, tmp_path, key):
    os.mkfifo(tmp_path / "pipe.safetensors")
    pipe = str(tmp_path / "pipe.safetensors")
    sections = {
        "slides": {},
        "encoder.weights": {"encoder": {"name": "vit_tiny_patch16_224", "weights": pipe}},
        "context.weights": {"context": {"window": 2, "depth": 1, "heads": 1, "position": "none", "weights": pipe}},
        "pool.weights": {"pool": {"name": "gated_attention", "weights": pipe}},
        "tiles.tissue": {"tiles": {"tissue": {"mask": pipe}}},
        "tiles.from": {"tiles": {"from": pipe, "level": None}},
    }[key]
    raw = config(pipe if key == "slides" else slide, tmp_path / "out", **sections)
    try:
        summary = tilestream.run(raw)
    except TilestreamError as error:
        words = str(error)
    else:
        words = summary.slides[0].error
        assert summary.exit_code == 3
    assert "is a FIFO (named pipe), not a file" in words


@pytest.mark.timeout(60)
def test_a_zarr_whose_metadata_is_a_pipe_is_refused_at_once(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    os.mkfifo(tmp_path / "a.zarr" / "zarr.json")
    with pytest.raises(InputError, match=r"zarr\.json is a FIFO"):
        describe_image(str(tmp_path / "a.zarr"))


def test_a_slide_that_may_not_be_read_is_refused_and_the_others_are_done(slide, tmp_path, monkeypatch):
    closed = tmp_path / "closed.tif"
    closed.write_bytes(slide.read_bytes())
    true = sources._open

    def refuse(address, options):
        if address == str(closed):
            raise PermissionError(13, "Permission denied", address)
        return true(address, options)

    monkeypatch.setattr(sources, "_open", refuse)  # the superuser, who may run this, may read everything
    summary = embed([closed, slide], tmp_path / "out")
    assert [result.status for result in summary.slides] == ["refused", "done"]
    assert "closed.tif: cannot be opened: Permission denied" in summary.slides[0].error


def test_what_a_log_may_show_of_a_task_holds_no_address():
    assert SECRET not in repr(ImageAddress(f"s3://k:{SECRET}@b/a.zarr", SourceOptions(), "f"))


def leaks(folder):
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_credentials_open_a_slide_and_are_written_and_said_nowhere(bucket, tmp_path, capfd):
    out = tmp_path / "out"
    address = f"http://user:{SECRET}@{bucket}/a.zarr?sig={SECRET}"
    refused = f"http://user:{SECRET}@{bucket}/gone.zarr?X-Amz-Signature={SECRET}"
    summary = embed([address, refused], out, tiles={"size": 64}, source={"mpp": 0.5})
    assert [result.status for result in summary.slides] == ["done", "refused"]
    store = tilestream.open(f"{out}/a.zarr")
    assert np.isfinite(store.embeddings[:]).all()
    write_report(str(out), None)
    for name in ("csv", "geojson", "trident-h5", "clam-h5", "spatialdata"):
        list(export_slides(str(out), name))
    assert leaks(out) == []
    said = [str(describe_image(address)), summary.to_json(), *(result.error for result in summary.slides)]
    with pytest.raises(InputError) as caught:
        describe_image(refused)
    said += [str(caught.value), *capfd.readouterr()]
    assert not [words for words in said if SECRET in words]
    assert "gone.zarr" in str(caught.value)


def test_the_command_line_says_no_credentials(bucket, tmp_path):
    address = f"http://user:{SECRET}@{bucket}/gone.zarr?sig={SECRET}"
    done = subprocess.run([sys.executable, "-m", "tilestream", "inspect", address], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "gone.zarr" in done.stderr
    assert SECRET not in done.stdout + done.stderr
