"""Nothing lost: kills, full disks, damaged and missing objects; the same command again ends with the same output."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed, opened, same_store
from tilestream.errors import InterruptedRunError
from tilestream.objects import Folder
from tilestream.store import SlideStore

CONTEXT = {"window": 4, "depth": 2, "heads": 3, "exact": True}
SECTIONS = {
    "tiles": {"size": 96, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:corners", "context": CONTEXT, "pool": "gated_attention",
    "output": {"save": ["tiles", "slide"]},
}  # fmt: skip
TILES = 72


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", make_image(800, 700, 5), tile=128, levels=1)


@pytest.fixture(scope="module")
def undisturbed(path, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    embed(path, output, compute={"shard_tiles": 10}, **SECTIONS)
    return opened(output, "a")


def ends_equal(output, undisturbed):
    found = opened(output, "a")
    assert same_store(found, undisturbed)
    np.testing.assert_array_equal(found.slide_vector, undisturbed.slide_vector)
    assert SlideStore(Folder(str(output / "a.zarr"))).damage() == []


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_ends_with_5_and_resumes_wherever_it_was(path, undisturbed, tmp_path, monkeypatch, kind):
    flush, written = Folder.flush, 0

    def fail(self, key):
        nonlocal written
        written += 1
        if written == at:
            raise OSError(kind, os.strerror(kind), key)
        flush(self, key)

    monkeypatch.setattr(Folder, "flush", fail)
    at, step, words = 1, 1 if kind == errno.ENOSPC else 5, []
    for _ in range(200):
        written = 0
        try:
            embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
        except InterruptedRunError as error:
            words.append(str(error))
        else:
            break
        at += step
    assert len(words) >= 2
    assert all("cannot be written" in w and "run the same command again" in w for w in words)
    ends_equal(tmp_path / "out", undisturbed)


def killed_at(moments, path, folder, **compute):
    """Run the command, killed at each of the moments (seconds after the first shard), then once to its end; tiles embedded in all."""
    given = config(
        path,
        folder / "out",
        **{**SECTIONS, "compute": {"scheduler": "inline", "shard_tiles": 10, "batch_size": 2, "threads": 1, **compute}},
    )
    given["encoder"] = "tests.support.encoders:slow_corners"
    (folder / "c.yaml").write_text(json.dumps(given))
    ledger = folder / "out" / "a.zarr" / ".tilestream" / "shards"
    for moment in moments:
        run = subprocess.Popen(
            [sys.executable, "-m", "tilestream", "run", str(folder / "c.yaml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = set(ledger.iterdir()) if ledger.is_dir() else set()
        while run.poll() is None and not (ledger.is_dir() and set(ledger.iterdir()) - before):
            time.sleep(0.005)
        time.sleep(moment)
        run.kill()
        run.wait()
    summary = tilestream.run(given)
    assert summary.exit_code == 0


@pytest.mark.parametrize("seed", range(1))
def test_kill_9_at_random_moments_ends_the_same(path, undisturbed, tmp_path, seed):
    chance = random.Random(seed)
    killed_at([chance.uniform(0, 0.5) for _ in range(2)], path, tmp_path)
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_at_fifty_random_moments_ends_the_same(path, undisturbed, tmp_path):
    chance = random.Random(7)
    for k in range(10):
        folder = tmp_path / str(k)
        folder.mkdir()
        killed_at([chance.uniform(0, 0.6) for _ in range(5)], path, folder)
        ends_equal(folder / "out", undisturbed)


def test_workers_that_are_killed_are_replaced(path, undisturbed, tmp_path):
    given = config(
        path,
        tmp_path / "out",
        **{**SECTIONS, "compute": {"scheduler": "local", "workers": 2, "shard_tiles": 10, "batch_size": 2, "threads": 1}},
    )
    given["encoder"] = "tests.support.encoders:slow_corners"
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    run = subprocess.Popen(
        [sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.yaml")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    ledger = tmp_path / "out" / "a.zarr" / ".tilestream" / "shards"
    while run.poll() is None and not (ledger.is_dir() and any(ledger.iterdir())):
        time.sleep(0.02)
    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    os.kill(workers[-1].pid, signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    "harm", ["cut", "ledger", pytest.param("flipped", marks=pytest.mark.slow), pytest.param("deleted", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stage", ["tiles", "context"])
def test_what_a_power_cut_took_is_found_and_done_again(path, undisturbed, tmp_path, harm, stage):
    embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    folder = tmp_path / "out" / "a.zarr"
    (folder / ".tilestream" / "complete.json").unlink()
    damage(folder, stage, harm)
    summary = embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    assert summary.new_tiles == (10 if stage == "tiles" else 0)
    ends_equal(tmp_path / "out", undisturbed)


def damage(folder, stage, harm):
    array = {"tiles": "X", "context": "obsm/context"}[stage]
    target = folder / "tables" / "tiles" / array / "c" / "3" / "0"
    if harm == "ledger":
        target = folder / ".tilestream" / "shards" / f"{stage}-000003.json"
    raw = bytearray(target.read_bytes())
    raw[len(raw) // 2] ^= 255
    if harm == "deleted":
        target.unlink()
    else:
        target.write_bytes(raw if harm == "flipped" else raw[: len(raw) // 2])


@pytest.mark.parametrize("harm", ["flipped", pytest.param("cut", marks=pytest.mark.slow), pytest.param("deleted", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "target", ["tables/tiles/X/c/3/0", "tables/slide/X/c/0/0", "overview.png", "tables/tiles/obs/row/c/0", "tables/tiles/zarr.json"]
)
def test_verify_finds_what_is_damaged_and_run_repairs_that_alone(path, undisturbed, tmp_path, harm, target):
    from tilestream.verifying import verify_output

    embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    victim = tmp_path / "out" / "a.zarr" / target
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 255
    if harm == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(raw if harm == "flipped" else raw[: len(raw) // 2])
    said = []
    assert verify_output(str(tmp_path / "out"), said.append, repair=True) == 4
    assert any(target in line for line in said)
    summary = embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    assert summary.new_tiles == {"tables/tiles/X/c/3/0": 10, "tables/slide/X/c/0/0": 0, "overview.png": 0}.get(target, TILES)
    ends_equal(tmp_path / "out", undisturbed)
    assert verify_output(str(tmp_path / "out"), said.append) == 0
