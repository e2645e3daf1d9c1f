"""One process, worker processes and an external cluster give equal outputs, and no pixel crosses the scheduler."""

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from functools import partial

import distributed
import psutil
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened, same_store
from tilestream.config.load import load_config
from tilestream.config.schema import Config
from tilestream.errors import ConfigError, InputError, InterruptedRunError, UnfitWorkerError
from tilestream.runner.engines.dask_engine import DaskEngine, _outcome
from tilestream.runner.engines.executors import InlineEngine, open_engine
from tilestream.stages.encoding.settled import settle

LINE = {
    "encoder": {"name": "vit_tiny_patch16_224", "precision": "fp32"},
    "context": {"window": 4, "depth": 2, "heads": 3},
    "pool": "mean",
    "tiles": {"stride": 112},
}


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.tif"
    write_pyramid(path, make_image(1200, 1300, seed=4), compression="jpeg", levels=1, mpp=0.5)
    return path


@pytest.fixture(scope="module")
def inline_store(image_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("inline")
    tilestream.run(config(image_path, out, **LINE, compute={"shard_tiles": 32}))
    return opened(out, "a")


@pytest.fixture
def cluster(tmp_path):
    """`dask scheduler` and two `dask worker` processes, joined by a scheduler file."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"], [sys.executable, "-m", "distributed.cli.dask_worker"]
    processes = [subprocess.Popen([*dask[0], "--scheduler-file", str(file), "--port", "0", "--no-dashboard"], stderr=subprocess.DEVNULL)]
    joined = [*dask[1], "--scheduler-file", str(file), "--nthreads", "2", "--no-dashboard", "--death-timeout", "60"]
    processes += [subprocess.Popen(joined, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield file
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(20)


@pytest.mark.slow
def test_two_local_workers_give_the_same_output(image_path, inline_store, tmp_path):
    summary = tilestream.run(config(image_path, tmp_path, **LINE, compute={"scheduler": "local", "workers": 2, "shard_tiles": 32}))
    assert summary.exit_code == 0
    assert same_store(inline_store, opened(tmp_path, "a"))


@pytest.mark.slow
def test_an_external_cluster_gives_the_same_output_and_moves_no_pixels(image_path, inline_store, cluster, tmp_path):
    summary = tilestream.run(config(image_path, tmp_path / "out", **LINE, compute={"scheduler": f"file:{cluster}", "shard_tiles": 32}))
    assert summary.exit_code == 0
    assert same_store(inline_store, opened(tmp_path / "out", "a"))
    with distributed.Client(scheduler_file=str(cluster), set_as_default=False) as client:
        between = client.run(lambda dask_worker: sum(entry["total"] for entry in dask_worker.transfer_incoming_log))
        sent = client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total)
        kept = client.run(lambda dask_worker: sum(dask_worker.state.tasks[k].nbytes or 0 for k in dask_worker.data))
    assert len(between) == 2
    assert sum(between.values()) == 0
    assert sum(sent.values()) < 10_000  # counts and seconds; one tile is 150,528 bytes
    assert sum(kept.values()) < 10_000


def boom(task):
    raise InputError(f"task {task} was refused")


def die_once(path):
    from pathlib import Path

    if not Path(path).exists():
        Path(path).touch()
        import os

        os._exit(1)
    return "done"


def double(task):
    return 2 * task


def compute_section(**settings):
    checked: Config = load_config({"slides": "x.svs", "output": "o", "tiles": {"level": 0}, "encoder": "patch_embed", "compute": settings})
    return checked.compute


def next_end(engine):
    """The next task to end, whatever news come in between."""
    while (ended := engine.wait_next(60)) is None:
        pass
    return ended


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"scheduler": "inline"}, InlineEngine),
        ({"scheduler": "local", "device": "cpu"}, InlineEngine),
        pytest.param({"scheduler": "local", "workers": 1}, DaskEngine, marks=pytest.mark.slow),
    ],
)
def test_every_engine_keeps_one_contract(settings, kind, tmp_path):
    with open_engine(compute_section(**settings)) as engine:
        assert isinstance(engine, kind)
        assert engine.call(double, 21) == 42
        assert engine.call_all(double, 21) == [42]
        assert engine.wait_next(0.01) is None
        for k in range(engine.capacity):
            engine.submit(f"key {k}", double, k)
        seen = dict(next_end(engine) for _ in range(engine.capacity))
        assert {key: outcome.value for key, outcome in seen.items()} == {f"key {k}": 2 * k for k in range(engine.capacity)}
        engine.submit("refused", boom, 7)
        key, outcome = next_end(engine)
        assert (key, outcome.value) == ("refused", None)
        assert isinstance(outcome.error, InputError)
        with pytest.raises(InputError, match="task 8 was refused"):
            engine.call(boom, 8)
        if kind is DaskEngine:
            engine.submit("retried", die_once, str(tmp_path / "died"))
            assert next_end(engine)[1].value == "done"
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            open_ports = [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert {address.ip for address in open_ports} == {"127.0.0.1"}
            assert 8787 not in {address.port for address in open_ports}  # two runs on one machine would want it


def test_a_cluster_class_that_cannot_be_imported_is_named():
    with pytest.raises(
        ConfigError,
        match=r"compute.scheduler.class: no_such_package.Cluster cannot be imported \(No module named 'no_such_package'\)\. Install its package",
    ):
        open_engine(compute_section(scheduler={"class": "no_such_package.Cluster", "args": {}}))


@pytest.mark.slow
def test_a_cluster_class_is_started_with_its_arguments(image_path, inline_store, tmp_path):
    scheduler = {
        "class": "distributed.LocalCluster",
        "args": {"n_workers": 0, "threads_per_worker": 2, "processes": True, "dashboard_address": "127.0.0.1:0"},
    }
    summary = tilestream.run(config(image_path, tmp_path, **LINE, compute={"scheduler": scheduler, "workers": 1, "shard_tiles": 32}))
    assert summary.exit_code == 0
    assert same_store(inline_store, opened(tmp_path, "a"))


@pytest.mark.slow
def test_a_result_that_is_lost_with_its_worker_is_computed_again():
    with open_engine(compute_section(scheduler="local", workers=2)) as engine:
        engine.submit("key", double, 21)
        client = engine._client
        # The task has ended, and nobody has asked for its result yet; None wakes who waits.
        future = next(done for done in iter(partial(engine._done.get, timeout=60), ...) if done is not None)
        engine._done.put(future)
        (holder,) = client.who_has([future])[future.key]
        pids = client.run(os.getpid)
        os.kill(pids[holder], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while future.status == "finished" and time.monotonic() < deadline:
            time.sleep(0.05)
        ended = None
        while ended is None and time.monotonic() < deadline:
            ended = engine.wait_next(1)
        assert ended is not None
        assert (ended[0], ended[1].value, ended[1].error) == ("key", 42, None)


class Answer:
    """A future that is done: with trouble on the way to its result, or with the error of its task."""

    key = "task"

    def __init__(self, trouble=None, error=None):
        self.trouble, self.error = trouble, error

    def exception(self):
        return self.error

    def result(self):
        raise self.trouble


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(ConnectionResetError(104, "reset by peer")), "the scheduler was lost"),
        (Answer(CancelledError()), "the scheduler was lost"),
        (Answer(error=CancelledError()), "the scheduler was lost"),
        (Answer(error=OSError("no such device")), "task: OSError: no such device"),
        (Answer(error=distributed.KilledWorker("task", None, 3)), "task killed 4 workers"),
    ],
)
def test_a_task_whose_end_cannot_be_known_ends_with_our_own_error(answer, words):
    with pytest.raises(InterruptedRunError, match=words):
        _outcome(answer)


def fail(task):
    raise RuntimeError(f"task {task} failed in a way of its own")


def test_an_error_that_is_not_ours_ends_the_run_with_our_own():
    with open_engine(compute_section(scheduler="local", workers=1)) as engine:
        with pytest.raises(InterruptedRunError, match="RuntimeError: task 5 failed in a way of its own"):
            engine.call(fail, 5)
        with pytest.raises(UnfitWorkerError, match=r"is refused: .*RuntimeError: task 6 failed in a way of its own"):
            engine.call_all(fail, 6)


def test_what_was_there_before_a_run_is_out_of_the_collectors_way_while_it_lasts_and_no_longer():
    before = gc.get_freeze_count()
    with InlineEngine() as engine:
        engine.settle()
        assert gc.get_freeze_count() > 50_000
    assert gc.get_freeze_count() == before


def test_what_a_caller_froze_stays_so():
    gc.freeze()
    try:
        with InlineEngine() as engine:
            engine.settle()
        assert gc.get_freeze_count() > 50_000
    finally:
        gc.unfreeze()


def test_where_rounds_are_rare_as_in_a_command_nothing_is_put_off():
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(50_000, 20, 50)
    try:
        settle()
        assert gc.get_freeze_count() == frozen
    finally:
        gc.set_threshold(*before)
