"""Storage that does not answer is no damage: it is waited for, then the run ends with exit 5; no tile becomes NaN for it."""

import builtins
import errno
import itertools
import os
import pathlib

import numpy as np
import pytest
from openslide import OpenSlideError

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.outages import Outage, Parts
from tests.support.runs import config, opened, same_store
from tilestream.errors import InterruptedRunError
from tilestream.sources.openslide import OpenSlideSource
from tilestream.stages import slide_task

CORNERS = "tests.support.encoders:corners"
LINES = {
    "tiles": {"encoder": CORNERS},
    "one pass": {"encoder": {"name": "patch_embed", "args": {"dim": 12}}, "context": {"window": 4, "depth": 1, "heads": 3}},
}


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(640, 512, seed=7), tile=64, levels=1)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(slide_task, "PAUSES", (0.0, 0.0, 0.0))


def line(name, image, output, **compute):
    sections = {
        "tiles": {"size": 64, "level": 0, "tissue": "none"},
        "compute": {"scheduler": "inline", "threads": 2, "shard_tiles": 16, **compute},
    }
    return config(image, output, **{**LINES[name], **sections})


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("kind", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN])
def test_an_outage_that_passes_leaves_no_trace(image, tmp_path, monkeypatch, no_pauses, name, kind):
    tilestream.run(line(name, image, tmp_path / "calm"))
    monkeypatch.setattr(os, "pread", Outage(60, 3, kind, (tmp_path / "out" / "a.zarr").exists))  # the plan is made
    summary = tilestream.run(line(name, image, tmp_path / "out"))
    assert (summary.exit_code, summary.failed_tiles, summary.slides[0].counts["ok"]) == (0, 0, 80)
    assert same_store(opened(tmp_path / "calm", "a"), opened(tmp_path / "out", "a"))


@pytest.mark.parametrize("name", LINES)
def test_an_outage_that_stays_ends_the_run_which_then_resumes(image, tmp_path, monkeypatch, no_pauses, name):
    tilestream.run(line(name, image, tmp_path / "calm"))
    ledger = tmp_path / "out" / "a.zarr" / ".tilestream" / "shards"
    kept = (lambda: ledger.is_dir() and any(ledger.iterdir())) if name == "tiles" else lambda: True
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", Outage(0 if name == "tiles" else 100, 10**9, errno.ESTALE, kept))
        with pytest.raises(InterruptedRunError, match=r"a\.tif: its storage does not answer: Stale file handle.*4 tries in 0 s") as ended:
            tilestream.run(line(name, image, tmp_path / "out"))
    assert ended.value.exit_code == 5
    assert "output" not in str(ended.value)
    summary = tilestream.run(line(name, image, tmp_path / "out"))
    assert (summary.exit_code, summary.failed_tiles) == (0, 0)
    assert 0 < summary.new_tiles < 80 or name == "one pass"
    assert same_store(opened(tmp_path / "calm", "a"), opened(tmp_path / "out", "a"))


@pytest.mark.parametrize("name", LINES)
def test_a_disk_that_gives_a_part_of_a_tile_and_then_fails_is_an_outage(image, tmp_path, monkeypatch, no_pauses, name):
    tilestream.run(line(name, image, tmp_path / "calm"))
    planned, failed = (tmp_path / "out" / "a.zarr").exists, []

    def fails(path, start):
        hit = path.name == "a.tif" and planned() and start % 500 == 0 and start not in failed and len(failed) < 3
        failed.extend([start] if hit else [])
        return hit

    monkeypatch.setattr(os, "pread", Parts(500, fails))
    pieces = {start - start % 500 for start in range(0, image.stat().st_size, 500)}
    summary = tilestream.run(line(name, image, tmp_path / "out"))
    assert set(failed) <= pieces
    assert (summary.exit_code, summary.failed_tiles, summary.slides[0].counts["ok"]) == (0, 0, 80)
    assert same_store(opened(tmp_path / "calm", "a"), opened(tmp_path / "out", "a"))


@pytest.mark.parametrize("count", [3, 10**9])
def test_worker_processes_outlast_an_outage_as_well(image, tmp_path, count):
    encoder = {"name": "tests.support.outages:corners_in_an_outage", "args": {"count": count}}
    given = {**line("tiles", image, tmp_path / "out", scheduler="local", workers=1), "encoder": encoder}
    if count > 3:
        with pytest.raises(InterruptedRunError, match="its storage does not answer"):
            tilestream.run(given)
        return
    assert tilestream.run(given).exit_code == 0
    tilestream.run(line("tiles", image, tmp_path / "calm"))
    np.testing.assert_array_equal(opened(tmp_path / "out", "a").embeddings[:], opened(tmp_path / "calm", "a").embeddings[:])


class LostHandle:
    """Of OpenSlide, over a file that is gone."""

    def read(self, *place):
        raise OpenSlideError("lost")


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_a_file_that_vanishes_while_it_is_read_is_an_outage(image, tmp_path, monkeypatch, no_pauses, backend):
    """Its share was unmounted: nothing is known to be damaged."""
    aside = tmp_path / "aside"
    calls = itertools.count()

    def vanish(source, *place, real=OpenSlideSource._read):
        if next(calls) == 70:
            image.rename(aside)
            source._handle = LostHandle()
        return real(source, *place)

    given = line("tiles", image, tmp_path / "out")
    given["source"] = {"backend": backend}
    if backend == "openslide":
        monkeypatch.setattr(OpenSlideSource, "_read", vanish)
        with pytest.raises(InterruptedRunError, match="its storage does not answer: the file is gone"):
            tilestream.run(given)
    else:
        monkeypatch.setattr(os, "pread", Outage(10, 1, errno.ESTALE, (tmp_path / "out" / "a.zarr").exists))  # the plan is made
        monkeypatch.setattr("tilestream.stages.slide_task.STOP.wait", lambda _: image.exists() and image.rename(aside))
        with pytest.raises(InterruptedRunError, match="its storage does not answer: the file is gone"):
            tilestream.run(given)
    monkeypatch.undo()
    aside.rename(image)
    assert tilestream.run(given).failed_tiles == 0


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EPERM, errno.ELOOP])
def test_a_slide_that_may_not_be_read_is_refused_alone(image, tmp_path, monkeypatch, kind):
    other = write_pyramid(tmp_path / "b.tif", make_image(128, 128, seed=1), tile=64, levels=1)
    opens = {"open": builtins.open, "Path.open": pathlib.Path.open}

    def refuse(name):
        def open_it(path, *arguments, **options):
            if str(path) == str(image):
                raise OSError(kind, os.strerror(kind), str(path))
            return opens[name](path, *arguments, **options)

        return open_it

    monkeypatch.setattr(builtins, "open", refuse("open"))
    monkeypatch.setattr(pathlib.Path, "open", refuse("Path.open"))
    summary = tilestream.run({**line("tiles", image, tmp_path / "out"), "slides": [str(image), str(other)]})
    assert summary.exit_code == 4
    refused, done = summary.slides
    assert (refused.status, done.status) == ("refused", "done")
    assert f"{image}: cannot be opened: {os.strerror(kind)}" in refused.error
