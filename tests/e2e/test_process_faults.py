"""Processes that are killed, disks that fail, workers that end: the same command goes on. More moments, kinds and places are in test_durability.py."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest

from tests.support.faults import TILE, run
from tests.support.resuming import SECTIONS, damage, dask_workers, ends_equal, hurt, killed_at, start, wait_for_shard, write_config
from tests.support.runs import config, embed, opened, same_store
from tilestream.cli import main
from tilestream.store.folder import Folder


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(tmp_path, undisturbed, say):
    chance = random.Random(1)
    killed_at([chance.uniform(0, 0.5) for _ in range(3)], undisturbed[0], tmp_path)
    ends_equal(tmp_path / "out", undisturbed[1])
    say("kill -9 at 3 random moments", "resumed, equal", "equal")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_ends_with_5_and_resumes(capsys, tmp_path, undisturbed, monkeypatch, say, kind):
    flush, calls = Folder.flush, itertools.count(1)

    def fail(self, key):
        if next(calls) == 6:
            raise OSError(kind, os.strerror(kind), key)
        flush(self, key)

    monkeypatch.setattr(Folder, "flush", fail)
    code, words = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert code == 5
    assert "cannot be written or read" in words
    again, _ = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert again == 0
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"{os.strerror(kind)} at the 6th write", "5, then resumed, equal", f"{code}, {again}, equal")


@pytest.mark.parametrize("harm", ["cut", "deleted"])
def test_what_a_power_cut_took_is_done_again(capsys, tmp_path, undisturbed, say, harm):
    embed(undisturbed[0], tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    (tmp_path / "out" / "a.zarr" / ".tilestream" / "complete.json").unlink()
    damage(tmp_path / "out" / "a.zarr", "tiles", harm)
    code, words = run(capsys, tmp_path, undisturbed[0], **SECTIONS)
    assert code == 0
    assert "do not hold what was written" in words
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"a renamed shard, then {harm}", "found by its checksum, redone, equal", f"{code}, equal")


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped"])
def test_verify_finds_damage_and_no_reader_gets_zeros(capsys, tmp_path, undisturbed, say, harm):
    embed(undisturbed[0], tmp_path / "out", compute={"shard_tiles": 10}, **SECTIONS)
    hurt(tmp_path / "out" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "3" / "0", harm)
    with pytest.raises(SystemExit) as left:  # the code is looked at
        main(["verify", str(tmp_path / "out")])
    words = capsys.readouterr().out
    assert left.value.code == 4
    assert "tables/tiles/X/c/3/0" in words
    assert "verify --repair" in words
    try:
        rows = opened(tmp_path / "out", "a").embeddings[30:40]
    except Exception as error:  # noqa: BLE001  # zarr's own, whichever it is
        seen = f"reading raises {type(error).__name__}"
    else:
        assert not (rows == 0).all(axis=1).any()
        seen = "reads as NaN" if np.isnan(rows).all() else "reads as other values"
    say(f"a chunk {harm}", "verify: 4 and its name; never zeros", f"{left.value.code}, {seen}")


def test_one_run_at_a_time_of_one_recipe(capsys, tmp_path, image, say):
    from tilestream.store.folder import Folder
    from tilestream.store.lock import hold_lock

    with hold_lock(Folder(str(tmp_path / "out")), image[0].stem):
        code, words = run(capsys, tmp_path, image[0])
        assert code == 6
        assert "in use by process" in words
    assert run(capsys, tmp_path, image[0])[0] == 0
    code, words = run(capsys, tmp_path, image[0], encoder="tests.support.encoders:corners")
    assert code == 6
    assert "encoder.name was" in words
    image[0].write_bytes(image[0].read_bytes() + b"more")
    code, words = run(capsys, tmp_path, image[0])
    assert code == 6
    assert "source.fingerprint" in words
    say("27, 28 in use; another recipe; other bytes", "6, and who or what", "6, 6, 6")


def test_a_dead_owner_is_replaced_even_where_its_number_lives_on(capsys, tmp_path, image, say):
    import platform

    lock = tmp_path / "out" / ".tilestream" / "claims" / f"{image[0].stem}.json"
    lock.parent.mkdir(parents=True)
    owner = {"host": platform.node(), "pid": os.getpid(), "since": "2026-01-01T00:00:00+00:00", "born": "another boot 1"}
    lock.write_text(json.dumps(owner))
    code, _ = run(capsys, tmp_path, image[0])
    assert (code, lock.exists()) == (0, False)
    say("a lock of a dead run, its number in use again", "taken over", f"{code}")


@pytest.mark.parametrize(("arguments", "code"), [([], 4), (["--shard", "0/2"], 0), (["--shard", "1/2"], 0)])
def test_a_slide_that_another_process_has_is_left_to_it(capsys, tmp_path, image, say, arguments, code):
    from tilestream.store.lock import hold_lock

    shutil.copyfile(image[0], tmp_path / "b.tif")
    given = config([image[0], tmp_path / "b.tif"], tmp_path / "out", tiles={"size": TILE})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    with hold_lock(Folder(str(tmp_path / "out")), "b"), pytest.raises(SystemExit) as left:  # the code is looked at
        main(["run", str(tmp_path / "c.yaml"), *arguments])
    assert left.value.code == code, capsys.readouterr()
    assert [path.stem for path in (tmp_path / "out").glob("*.zarr")] == ([] if "1/2" in arguments else [image[0].stem])
    say(f"{arguments} beside a process that has one slide", "the others are done", f"{code}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced(tmp_path, undisturbed, say, number):

    write_config(undisturbed[0], tmp_path, scheduler="local", workers=2)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    workers = dask_workers(run)
    workers[-1].send_signal(number)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"a Dask worker gets {number.name}", "replaced, equal", "0, equal")


@pytest.mark.slow
def test_a_poison_tile_ends_with_5_and_without_it_workers_live_on(tmp_path, undisturbed, say):
    write_config(undisturbed[0], tmp_path, "poison", scheduler="local", workers=1)
    run = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
    _, err = run.communicate(timeout=200)
    assert run.returncode == 5, err
    assert "killed 4 workers" in err
    assert "compute.isolate" in err
    say("a tile that kills each worker", "5 after 4 workers, and the way out", f"{run.returncode}")


@pytest.mark.parametrize(
    ("encoder", "numbers", "compute"),
    [
        ("counted_corners", [signal.SIGINT], {}),
        ("stuck", [signal.SIGTERM], {}),
        ("counted_corners", [signal.SIGTERM], {}),
        ("counted_corners", [signal.SIGHUP], {}),
        ("counted_corners", [signal.SIGHUP], {"scheduler": "local", "workers": 2}),
        ("counted_corners", [signal.SIGHUP, signal.SIGHUP], {}),
        ("stuck", [signal.SIGHUP], {}),
        ("stuck", [signal.SIGINT, signal.SIGINT], {}),
        ("stuck", [signal.SIGTERM, signal.SIGTERM], {}),
        ("stuck", [signal.SIGHUP, signal.SIGTERM], {}),
    ],
)
@pytest.mark.slow
def test_one_interrupt_ends_within_10_s_and_a_second_at_once(tmp_path, undisturbed, say, encoder, numbers, compute):
    write_config(undisturbed[0], tmp_path, encoder, **compute)
    run = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
    if encoder == "stuck":
        while not (tmp_path / "out" / "a.zarr" / "overview.png").exists() and not (tmp_path / "out" / "a.zarr" / "zarr.json").exists():
            time.sleep(0.05)
        time.sleep(0.5)
    else:
        wait_for_shard(run, tmp_path)
    for k, number in enumerate(numbers):
        time.sleep(k)  # what comes at once is the first one told again
        began = time.monotonic()
        if run.poll() is None:
            run.send_signal(number)
    _, err = run.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert run.returncode == 5, err
    twice = len(numbers) > 1 and numbers[1] != signal.SIGHUP  # a terminal that closes may say so twice
    assert seconds < (2 if twice else 10)
    assert ("interrupted twice" in err) == twice
    assert "the same command resumes" in err
    write_config(undisturbed[0], tmp_path, "counted_corners" if encoder != "stuck" else encoder)
    if encoder != "stuck":
        kept = len(list((tmp_path / "out" / "a.zarr" / ".tilestream" / "shards").glob("tiles-*")))
        assert kept >= 1
        again = start(tmp_path, TILESTREAM_TEST_COUNT=str(tmp_path / "count"))
        assert (again.communicate(timeout=60), again.returncode)[1] == 0
        assert same_store(opened(tmp_path / "out", "a"), undisturbed[1])
    names = " and ".join(number.name for number in numbers)
    say(f"{names} ({encoder})", "5 at once" if twice else "5 within 10 s, work kept", f"5 after {seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("compute", [{}, {"scheduler": "local", "workers": 2}], ids=["inline", "two workers"])
@pytest.mark.parametrize("lost", ["nohup", "closed", "pipe", "terminal", "terminal and hang-up"])
def test_a_run_goes_on_where_nobody_listens_any_more_and_a_hang_up_ends_it_in_order(tmp_path, undisturbed, say, lost, compute):
    write_config(undisturbed[0], tmp_path, **compute)
    heard, stderr = os.openpty() if "terminal" in lost else os.pipe()
    through = {"nohup": ["nohup"], "closed": ["bash", "-c", 'exec "$@" 2>&-', "bash"]}.get(lost, [])
    run = start(tmp_path, through=through, stderr=stderr)
    os.close(stderr)
    wait_for_shard(run, tmp_path)
    if lost in ("pipe", "terminal", "terminal and hang-up"):
        os.close(heard)
    if lost in ("nohup", "terminal and hang-up"):
        os.killpg(run.pid, signal.SIGHUP)
    code = run.wait(120)
    assert code == (5 if "hang-up" in lost else 0)
    if lost in ("nohup", "closed"):
        with os.fdopen(heard, encoding="utf-8") as words:
            assert "Traceback" not in words.read()
    if code:
        again = start(tmp_path)
        assert (again.communicate(timeout=120), again.returncode)[1] == 0
    ends_equal(tmp_path / "out", undisturbed[1])
    say(f"{lost}, {compute or 'inline'}", "5 and resumed after a hang-up, else to its end; equal", f"{code}, equal")
