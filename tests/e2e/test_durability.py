"""Nothing lost: kills, full disks, damaged and missing objects; the same command again ends with the same output."""

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import distributed
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import (
    SECTIONS,
    SHARD,
    TILES,
    damage,
    dask_workers,
    ends_equal,
    hurt,
    killed_at,
    start,
    wait_for_shard,
    write_config,
)
from tests.support.runs import embed, opened
from tilestream.errors import InterruptedRunError
from tilestream.stages.worker_settings import LANES
from tilestream.store.folder import Folder

SHARDS = -(-TILES // SHARD)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", make_image(800, 700, 5), tile=128, levels=1)


@pytest.fixture(scope="module")
def undisturbed(path, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    embed(path, output, compute={"shard_tiles": 10}, **SECTIONS)
    return opened(output, "a")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_ends_with_5_and_resumes_wherever_it_was(path, undisturbed, tmp_path, monkeypatch, kind):
    flush = Folder.flush

    def fail(self, key):
        if next(calls) == at:
            raise OSError(kind, os.strerror(kind), key)
        flush(self, key)

    monkeypatch.setattr(Folder, "flush", fail)
    at, step, words = 1, 1 if kind == errno.ENOSPC else 5, []
    for _ in range(200):
        calls = itertools.count(1)
        try:
            embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
        except InterruptedRunError as error:
            words.append(str(error))
        else:
            break
        at += step
    assert len(words) >= 2
    assert all("cannot be written or read" in w and "run the same command again" in w for w in words)
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.slow
def test_kill_9_at_random_moments_ends_the_same(path, undisturbed, tmp_path, seed):
    chance = random.Random(seed)
    killed_at([chance.uniform(0, 0.5) for _ in range(2)], path, tmp_path)
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_fifty_random_moments_ends_the_same_and_repeats_no_more_than_was_in_flight(path, undisturbed, tmp_path, monkeypatch):
    chance, in_flight, kills, cut_short = random.Random(7), LANES + 1, 5, 0
    monkeypatch.setenv("TILESTREAM_TEST_COUNT", str(tmp_path / "whole"))
    assert tilestream.run(write_config(path, tmp_path, "counted_corners")).exit_code == 0
    known_by = len((tmp_path / "whole").read_text().split()) - SHARDS  # calls by which an encoder is known, before its first shard
    for k in range(10):
        folder = tmp_path / str(k)
        folder.mkdir()
        monkeypatch.setenv("TILESTREAM_TEST_COUNT", str(folder / "count"))
        killed_at([chance.uniform(0, 0.4) for _ in range(kills)], path, folder, "counted_corners")
        ends_equal(folder / "out", undisturbed)
        # Each shard is one call of the encoder; a start that has work to do makes those more by which the encoder is known.
        calls = (folder / "count").read_text().split()
        shards = len(calls) - known_by * len(set(calls))
        assert SHARDS <= shards <= SHARDS + kills * in_flight
        cut_short += shards - SHARDS
    assert cut_short > 0


@pytest.mark.parametrize("step", [3, pytest.param(0, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
@pytest.mark.slow
def test_kill_9_at_a_step_of_a_commit_ends_the_same(path, undisturbed, tmp_path, step):
    """At one step of a first run; or at every step, one after another, each run going on from where the one before it died."""
    given = write_config(path, tmp_path, "corners")
    for at in [step] if step else range(1, 1000):
        run = start(tmp_path, "-m", "tests.support.dying", TILESTREAM_TEST_DIE_AT=str(at))
        _, words = run.communicate(timeout=120)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, words
    assert at > 3 or step
    assert tilestream.run(given).exit_code == 0
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_workers_that_end_are_replaced(path, undisturbed, tmp_path, number):
    write_config(path, tmp_path, scheduler="local", workers=2)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    os.kill(dask_workers(run)[-1].pid, number)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_killed_again_and_again_end_with_the_same_output_or_5(path, undisturbed, tmp_path, monkeypatch):
    chance = random.Random(3)
    write_config(path, tmp_path, "counted_corners", scheduler="local", workers=2)
    for _ in range(6):
        run = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
        wait_for_shard(run, tmp_path)
        while run.poll() is None:
            if found := dask_workers(run):
                chance.choice(found).send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]))
            time.sleep(chance.uniform(0.5, 4))
        _, err = run.communicate(timeout=120)
        assert run.returncode in (0, 5), err
        if run.returncode == 0:
            break
    monkeypatch.setenv("TILESTREAM_TEST_COUNT", str(tmp_path / "count"))
    assert tilestream.run(write_config(path, tmp_path, "counted_corners")).exit_code == 0
    ends_equal(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_run_with_5_and_its_work_is_kept(path, undisturbed, tmp_path):
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"], [sys.executable, "-m", "distributed.cli.dask_worker"]
    scheduler = subprocess.Popen([*dask[0], "--scheduler-file", str(file), "--port", "0", "--no-dashboard"], stderr=subprocess.DEVNULL)
    worker = subprocess.Popen(
        [*dask[1], "--scheduler-file", str(file), "--nthreads", "3", "--no-dashboard", "--death-timeout", "30"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TILESTREAM_TEST_COUNT": str(tmp_path / "count")},
    )
    try:
        while not file.exists():
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        write_config(path, tmp_path, "counted_corners", scheduler=f"file:{file}")
        run = start(tmp_path)
        wait_for_shard(run, tmp_path)
        scheduler.kill()
        _, err = run.communicate(timeout=90)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert run.returncode == 5, err
    assert "scheduler was lost" in err
    write_config(path, tmp_path, "counted_corners")
    again = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
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


@pytest.mark.parametrize("harm", ["flipped", pytest.param("cut", marks=pytest.mark.slow), pytest.param("deleted", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "target", ["tables/tiles/X/c/3/0", "tables/slide/X/c/0/0", "overview.png", "tables/tiles/obs/row/c/0", "tables/tiles/zarr.json"]
)
def test_verify_finds_what_is_damaged_and_run_repairs_that_alone(path, undisturbed, tmp_path, harm, target):
    from tilestream.store.cohort import verify_output

    embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    victim = tmp_path / "out" / "a.zarr" / target
    hurt(victim, harm)
    said = []
    assert verify_output(str(tmp_path / "out"), said.append, repair=True) == 4
    assert any(target in line for line in said)
    summary = embed(path, tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    assert summary.new_tiles == {"tables/tiles/X/c/3/0": 10}.get(target, 0)
    ends_equal(tmp_path / "out", undisturbed)
    assert verify_output(str(tmp_path / "out"), said.append) == 0
