"""Reading in a child process: what hangs or dies costs the tile that does it, and no other."""

import errno
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed, opened, same_store
from tilestream.errors import InputError, InterruptedRunError
from tilestream.sources.base import ImageAddress, SourceOptions
from tilestream.store.layout import TIMEOUT
from tilestream.tiles.isolation import IsolatedReader, IsolatedSource, Job
from tilestream.tiles.read_spec import ReadSpec


def read(address, patience=3.0):
    job = Job(ImageAddress(address, SourceOptions(), ""), ReadSpec(0, 1.0, 96, 1.0), 2, 4, "tests.support.crashing:open_crashing")
    y, x = (a.ravel().astype(np.int64) for a in np.mgrid[0:480:96, 0:480:96])
    pixels, failed, seen = np.zeros((25, 96, 96, 3), np.uint8), {}, []
    for batch in IsolatedReader(job, patience).read(y, x):
        seen += batch.index.tolist()
        failed |= batch.failed
        pixels[batch.index] = batch.pixels
    assert sorted(seen) == list(range(25))
    good = [k for k in range(25) if k not in failed]
    assert (pixels[good] == (y[good] % 251)[:, None, None, None]).all()
    return failed


def test_sound_tiles_come_as_they_are():
    assert read("") == {}


def test_a_tile_that_kills_the_process_is_given_up_and_the_others_are_read():
    failed = read("die:96,192")
    assert list(failed) == [7]
    assert failed[7].status == TIMEOUT
    assert "the reading process died" in failed[7].words


def test_a_tile_that_hangs_is_given_up_after_its_time():
    failed = read("hang:480,0;hang:192,96", patience=1.0)
    assert list(failed) == [11]
    assert "more than 1 s" in failed[11].words


NO_ROOM = [errno.EAGAIN, errno.ENOMEM, errno.EMFILE]


def no_process(kind):
    def start(*arguments, **options):
        raise OSError(kind, os.strerror(kind))

    return start


@pytest.mark.parametrize("kind", NO_ROOM)
def test_where_the_system_has_no_room_for_a_process_no_tile_is_given_up_for_it(monkeypatch, kind):
    words = re.escape(f"a process that decodes cannot be started on {os.uname().nodename}: {os.strerror(kind)}.")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_process(kind))
        with pytest.raises(InterruptedRunError, match=words):
            read("")
        with pytest.raises(InterruptedRunError, match=words):
            IsolatedSource("a.tif", SourceOptions())
    assert read("") == {}


@pytest.mark.slow
def test_a_run_for_which_there_is_no_room_ends_with_5_and_resumes(tmp_path, monkeypatch):
    path = write_pyramid(tmp_path / "a.tif", make_image(500, 700, 1), tile=128, levels=1)
    sections = {"tiles": {"size": 96, "level": 0, "tissue": "none"}, "compute": {"shard_tiles": 16, "isolate": True}}
    calm = embed(path, tmp_path / "calm", **sections)
    start, started = subprocess.Popen, []

    def some(*arguments, **options):
        started.append(arguments)
        return (start if len(started) < 4 else no_process(errno.EAGAIN))(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", some)
        with pytest.raises(InterruptedRunError, match="cannot be started") as ended:
            embed(path, tmp_path / "out", **sections)
    assert ended.value.exit_code == 5
    summary = embed(path, tmp_path / "out", **sections)
    assert (summary.exit_code, summary.failed_tiles, calm.failed_tiles) == (0, 0, 0)
    assert same_store(opened(tmp_path / "calm", "a"), opened(tmp_path / "out", "a"))


def test_a_source_that_cannot_be_opened_is_refused():
    with pytest.raises(InputError, match="refused: this one cannot be opened"):
        read("refused")


def test_a_run_in_isolation_gives_the_same_output(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", make_image(500, 700, 1), tile=128, levels=1)
    tiles = {"size": 96, "level": 0, "tissue": "none"}
    embed(path, tmp_path / "plain", tiles=tiles)
    embed(path, tmp_path / "apart", tiles=tiles, compute={"isolate": True})
    assert same_store(opened(tmp_path / "plain", "a"), opened(tmp_path / "apart", "a"))


def test_workers_of_a_cluster_read_in_isolation_too(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", make_image(500, 700, 1), tile=128, levels=1)
    tiles = {"size": 96, "level": 0, "tissue": "none"}
    embed(path, tmp_path / "plain", tiles=tiles, compute={"shard_tiles": 16})
    embed(path, tmp_path / "apart", tiles=tiles, compute={"shard_tiles": 16, "isolate": True, "scheduler": "local", "workers": 2})
    assert same_store(opened(tmp_path / "plain", "a"), opened(tmp_path / "apart", "a"))


def test_a_child_ends_with_its_parent_even_where_it_hangs(tmp_path):
    code = """
import numpy as np
from tilestream.sources.base import ImageAddress, SourceOptions
from tilestream.tiles.isolation import IsolatedReader, Job
from tilestream.tiles.read_spec import ReadSpec
job = Job(ImageAddress("hang:0,0", SourceOptions(), ""), ReadSpec(0, 1.0, 96, 1.0), 1, 4, "tests.support.crashing:open_crashing")
reader = IsolatedReader(job)
reader._child.pipe().send((np.zeros(1, np.int64), np.zeros(1, np.int64)))
print(reader._child._process.pid, flush=True)
input()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    ended = os.pidfd_open(child) if Path(f"/proc/{child}").exists() else None
    if ended is not None:
        assert select.select([ended], [], [], 20.0)[0], "the child outlived its parent"
        os.close(ended)
