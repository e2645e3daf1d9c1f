"""The faults of a run with a head that segments and one that detects: nothing lost, nothing invented, and the same bytes in the end."""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import tilestream
from tests.support.images import write_pyramid
from tests.support.made_nuclei import CLASSES, draw_nuclei, place_nuclei
from tests.support.outages import Outage
from tests.support.resuming import dask_workers, start, wait_for_shard
from tests.support.runs import bytes_of, config
from tilestream.errors import InterruptedRunError
from tilestream.models.heads import patch_grid
from tilestream.stages import slide_task
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

SIDE, SIZE = 900, 128
HEADS = {
    "kinds": {"kind": "segment", "model": "tests.support.dense_models:strided41", "size": SIZE},
    "mixed": {"kind": "segment", "model": "tests.support.dense_models:small_unet", "size": SIZE, "overlap": 32},
    "nuclei": {"kind": "detect", "model": "tests.support.made_nuclei:instances", "size": 256, "overlap": 40},
}
MARGIN = 20
"""Px around a patch's own that `strided41` sees."""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a.tif"
    nuclei = place_nuclei(SIDE, 300, 0)
    pixels = draw_nuclei(SIDE, nuclei, np.random.default_rng(0).integers(0, len(CLASSES), 300))
    return write_pyramid(path, pixels, compression="deflate", levels=1, mpp=0.5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(patch_grid, "BLOCK_SIDE", 70)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(slide_task, "PAUSES", (0.0, 0.0, 0.0))


def given(path, output, **compute):
    tiles = {"size": 150, "level": 0, "tissue": "none"}
    return config(path, output, encoder="none", tiles=tiles, heads=HEADS, compute={"threads": 1, **compute})


def answers(output):
    """Every file of the heads, by its place."""
    return {key: data for key, data in bytes_of(output / "a.zarr").items() if key.parts[0] in ("labels", "shapes")}


@pytest.fixture(scope="module")
def calm(image, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patch_grid, "BLOCK_SIDE", 70)
        output = tmp_path_factory.mktemp("calm")
        assert tilestream.run(given(image, output)).exit_code == 0
    assert len([key for key in answers(output) if str(key).startswith("labels/kinds/0/c")]) > 4
    return output


def ends_as_calm(output, calm):
    assert answers(output) == answers(calm)
    assert SlideStore(Folder(str(output / "a.zarr"))).damage() == []


@pytest.mark.parametrize(
    "kind", [errno.ENOSPC, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (errno.EROFS, errno.EIO, errno.EDQUOT))]
)
@pytest.mark.slow
def test_a_disk_that_fails_anywhere_ends_with_5_and_resumes(image, calm, tmp_path, monkeypatch, kind):
    flush, at = Folder.flush, 4

    def fail(self, key):
        if next(calls) == at:
            raise OSError(kind, os.strerror(kind), key)
        flush(self, key)

    monkeypatch.setattr(Folder, "flush", fail)
    ended = []
    for _ in range(30):
        calls = itertools.count(1)
        try:
            assert tilestream.run(given(image, tmp_path / "out")).exit_code == 0
        except InterruptedRunError as error:
            ended.append(str(error))
        else:
            break
        at += 9
    assert len(ended) >= 2
    assert all("cannot be written or read" in words for words in ended)
    ends_as_calm(tmp_path / "out", calm)


def test_an_outage_that_passes_leaves_no_trace(image, calm, tmp_path, monkeypatch, no_pauses):
    monkeypatch.setattr(os, "pread", Outage(30, 3, errno.ESTALE, (tmp_path / "out" / "a.zarr").exists))
    assert tilestream.run(given(image, tmp_path / "out")).exit_code == 0
    ends_as_calm(tmp_path / "out", calm)


@pytest.mark.parametrize("after", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_an_outage_that_stays_ends_with_5_and_costs_no_pixel(image, calm, tmp_path, monkeypatch, no_pauses, after):
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", Outage(after, 10**9, errno.EIO, (tmp_path / "out" / "a.zarr").exists))
        with pytest.raises(InterruptedRunError, match="its storage does not answer"):
            tilestream.run(given(image, tmp_path / "out"))
    assert tilestream.run(given(image, tmp_path / "out")).exit_code == 0
    ends_as_calm(tmp_path / "out", calm)


def hurt_piece(image, folder, number):
    """A copy whose file tile of that number cannot be decoded, and the place of that tile: y, x, side."""
    path = Path(shutil.copy(image, folder / "a.tif"))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count, side = page.dataoffsets[number], page.databytecounts[number], page.tilewidth
        y, x = (part * side for part in divmod(number, -(-SIDE // side)))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    return path, y, x, side


@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pixels_that_cannot_be_read_are_not_computed_and_no_class(image, calm, tmp_path, isolate):
    path, y, x, side = hurt_piece(image, tmp_path, 5)
    asked = given(path, tmp_path / "out", isolate=isolate)
    summary = tilestream.run(asked)
    assert summary.exit_code == 4
    assert all(summary.slides[0].unanswered[head] > 0 for head in HEADS)
    found = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    step = SIZE - 2 * MARGIN
    core = np.arange(len(found)) * 4 // step * step - MARGIN  # first px of the patch whose core a label lies in
    lost = (core + SIZE > y)[:, None] & (core < y + side)[:, None] & (core + SIZE > x) & (core < x + side)
    np.testing.assert_array_equal(found == 0, lost)
    whole = zarr.open_array(calm / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    np.testing.assert_array_equal(found[~lost], whole[~lost])
    mixed = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "mixed" / "0", mode="r")[:]
    assert (mixed[y : y + side, x : x + side] == 0).all()
    assert tilestream.run(asked).exit_code == 4  # finished as it is


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["run", "worker"])
def test_a_process_that_is_killed_is_no_loss(image, tmp_path, monkeypatch, whom):
    monkeypatch.undo()  # other processes have blocks of their own size
    tilestream.run(given(image, tmp_path / "calm"))
    more = {} if whom == "run" else {"scheduler": "local", "workers": 2}
    asked = given(image, tmp_path / "out", **more)
    (tmp_path / "c.yaml").write_text(json.dumps(asked))
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    (run if whom == "run" else dask_workers(run)[-1]).kill()
    _, words = run.communicate(timeout=200)
    assert run.returncode == (-9 if whom == "run" else 0), words
    assert tilestream.run(asked).exit_code == 0
    ends_as_calm(tmp_path / "out", tmp_path / "calm")
