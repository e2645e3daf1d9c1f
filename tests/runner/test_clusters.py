"""Clusters whose workers come and go, clusters that a batch system starts, and those that do not answer."""

import gc
import logging
import re
import socket
import threading
import time
from pathlib import Path

import pytest

import tilestream
from tests.support.clusters import ROOT, Slurm, processes
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened, same_store
from tilestream.config.load import load_config
from tilestream.errors import ConfigError, InterruptedRunError
from tilestream.runner import driver
from tilestream.runner.engines import clusters
from tilestream.runner.engines.executors import open_engine
from tilestream.runner.engines.patience import Patience, duration

SLURM = "dask_jobqueue.SLURMCluster"
LOCAL = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


def compute_section(**settings):
    return load_config({"slides": "x.svs", "output": "o", "tiles": {"level": 0}, "encoder": "patch_embed", "compute": settings}).compute


def test_waiting_is_told_at_growing_intervals_and_has_no_end_by_itself():
    now, said = [0.0], []
    patience = Patience(None, 8, said.append, lambda: now[0])
    for second in range(0, 7 * 3600, 5):
        now[0] = float(second)
        patience.wait(0)
    assert said[:6] == [
        "0 of 8 workers, 10 s",
        "0 of 8 workers, 20 s",
        "0 of 8 workers, 40 s",
        "0 of 8 workers, 1 min",
        "0 of 8 workers, 2 min",
        "0 of 8 workers, 5 min",
    ]
    assert len(said) < 60
    assert said[-1].startswith("0 of 8 workers, 6 h ")
    patience.end()
    now[0] += 5
    patience.wait(0)
    assert said[-1].startswith("0 of 8 workers, 6 h ")  # a new wait begins at 0


def test_waiting_ends_where_the_config_says_so():
    now = [0.0]
    patience = Patience(90, None, lambda _: None, lambda: now[0])
    patience.wait(0)
    now[0] = 91.0
    with pytest.raises(InterruptedRunError, match=r"0 workers after 1 min, and compute.wait is 1 min.*the same command resumes"):
        patience.wait(0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (90000, "25 h 0 min")]
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_scheduler_without_workers_is_waited_for_as_long_as_the_config_says(tmp_path):
    with processes(tmp_path, 0) as cluster, pytest.raises(InterruptedRunError, match=r"0 workers after \d s, and compute.wait is 1 s"):
        open_engine(compute_section(scheduler=f"file:{cluster.file}", wait=1))


def test_an_address_at_which_nothing_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(clusters, "ANSWER", 60.0)  # no wait would be short
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"compute.scheduler: no cluster answers at {address}: .*refused. Start one") as refused:
            open_engine(compute_section(scheduler=address))
    assert "\n" not in str(refused.value)


def test_an_address_at_which_something_else_listens_is_refused(monkeypatch):
    monkeypatch.setattr(clusters, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"compute.scheduler: no cluster answers at {address}: ") as refused:
            open_engine(compute_section(scheduler=address))
    assert "\n" not in str(refused.value)


def test_a_batch_system_that_is_not_there_is_named_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"SLURMCluster submits jobs with sbatch, which is not on the PATH of .*") as refused:
        open_engine(compute_section(scheduler={"class": SLURM, "args": {"cores": 1, "memory": "2GB"}}))
    assert "\n" not in str(refused.value)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    made = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(made.folder), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return made


def jobs(**args):
    return {"class": SLURM, "args": {"cores": 3, "processes": 1, "memory": "2GB", "scheduler_options": LOCAL, **args}}


def test_what_a_batch_system_refuses_is_told_in_its_words(slurm):
    (slurm.folder / "refuses").touch()
    with pytest.raises(ConfigError, match=r"SLURMCluster does not start: .*Invalid account") as refused:
        open_engine(compute_section(scheduler=jobs(n_workers=2)))
    assert "\n" not in str(refused.value)


def test_arguments_that_a_class_does_not_take_are_one_line():
    with pytest.raises(ConfigError, match=r"compute.scheduler: builtins.float does not start: .*keyword argument") as refused:
        open_engine(compute_section(scheduler={"class": "builtins.float", "args": {"memory": "2GB"}}))
    assert "\n" not in str(refused.value)


def double(task):
    return 2 * task


def test_a_batch_system_starts_as_many_workers_as_the_class_was_told(slurm):
    with open_engine(compute_section(scheduler=jobs(n_workers=2))) as engine:
        assert engine.call(double, 21) == 42
        assert len(slurm.jobs) == 2
    assert slurm.cancelled == 2


def hold(task):
    """The number of a task, once the gate is open."""
    number, gate = task
    while not Path(gate).exists():
        time.sleep(0.02)
    return number


def follow(engine, workers, ended):
    """Work on until so many workers count; what ends meanwhile is kept."""
    while engine.record[-1][0] != workers:
        ended.append(engine.wait_next(60))


@pytest.mark.slow
def test_work_in_flight_follows_the_workers_that_come_and_go(tmp_path):
    gate, ended = tmp_path / "gate", []
    with processes(tmp_path, 1) as cluster, open_engine(compute_section(scheduler=f"file:{cluster.file}")) as engine:
        assert engine.call_all(double, 21) == [42]
        assert engine.record[-1] == (1, 5)
        for number in range(5):
            engine.submit(number, hold, (number, str(gate)))
        cluster.join(2)
        follow(engine, 3, ended)
        assert engine.record[-1] == (3, 15)
        for number in range(5, engine.capacity):
            engine.submit(number, hold, (number, str(gate)))
        cluster.leave(1)
        follow(engine, 2, ended)
        assert engine.record[-1] == (2, 10)
        gate.touch()
        while len(done := [pair for pair in ended if pair is not None]) < 15:
            ended.append(engine.wait_next(60))
        assert sorted((key, outcome.value) for key, outcome in done) == [(number, number) for number in range(15)]


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def heard():
    handler, log = Heard(), logging.getLogger("distributed")
    log.addHandler(handler)
    yield handler.records
    log.removeHandler(handler)


@pytest.mark.slow
def test_a_worker_that_leaves_is_named_and_a_lost_scheduler_is_one_line(tmp_path, heard):
    said = []
    with processes(tmp_path, 2) as cluster, open_engine(compute_section(scheduler=f"file:{cluster.file}"), said.append) as engine:
        ended = []
        follow(engine, 2, ended)
        cluster.leave(1)
        follow(engine, 1, ended)
        (line,) = said
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+ left; 1 worker of this run is there\. What was in hand is done again\.", line)
        cluster.scheduler.kill()
        with pytest.raises(InterruptedRunError, match=r"the scheduler was lost.*the same command resumes"):
            follow(engine, 0, ended)
    assert not [record for record in heard if record.exc_info]


@pytest.mark.slow
def test_a_run_takes_six_late_workers_and_loses_nothing_as_two_leave(tmp_path, monkeypatch):
    image = write_pyramid(tmp_path / "a.tif", make_image(640, 512, seed=7), tile=64, levels=1)
    monkeypatch.setenv("TILESTREAM_TEST_GATE", str(tmp_path / "gate"))
    sections = {"tiles": {"size": 64, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:gated"}
    engines, opening = [], driver.open_engine

    def keeping(*arguments):
        engines.append(opening(*arguments))
        return engines[-1]

    monkeypatch.setattr(driver, "open_engine", keeping)

    def come_and_go():
        deadline = time.monotonic() + 240

        def until(workers):
            while time.monotonic() < deadline and not (engines and engines[0].record and engines[0].record[-1][0] == workers):
                time.sleep(0.05)

        until(1)
        cluster.join(6)
        until(7)
        cluster.leave(2)
        until(5)
        (tmp_path / "gate").touch()

    with processes(tmp_path, 1) as cluster:
        around = threading.Thread(target=come_and_go)
        around.start()
        compute = {"scheduler": f"file:{cluster.file}", "threads": 1, "batch_size": 2, "shard_tiles": 2}
        summary = tilestream.run(config(image, tmp_path / "out", **sections, compute=compute))
        around.join()
    record = engines[0].record
    assert (5, 25) in record[record.index((7, 35)) :]
    assert (summary.exit_code, summary.tiles) == (0, 80)
    tilestream.run(config(image, tmp_path / "alone", **sections, compute={"batch_size": 2, "shard_tiles": 2}))
    assert same_store(opened(tmp_path / "alone", "a"), opened(tmp_path / "out", "a"))
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dask-jobqueue leaves its own processes to the collector
@pytest.mark.parametrize(
    "scheduler",
    [
        {
            "class": "dask_jobqueue.local.LocalCluster",
            "args": {"n_workers": 2, "cores": 3, "processes": 1, "memory": "2GB", "scheduler_options": LOCAL},
        },
        {"class": "distributed.LocalCluster", "args": {"n_workers": 2, "threads_per_worker": 3, "dashboard_address": "127.0.0.1:0"}},
        {"class": SLURM, "args": {"n_workers": 2, "cores": 3, "processes": 1, "memory": "2GB", "scheduler_options": LOCAL}},
        {
            "class": SLURM,
            "args": {"cores": 3, "processes": 1, "memory": "2GB", "scheduler_options": LOCAL},
            "adapt": {"minimum": 1, "maximum": 2},
        },
    ],
    ids=["jobs of this machine", "dask's own", "a batch system", "adaptive"],
)
def test_a_run_on_a_cluster_that_a_class_starts_gives_the_same_store(slurm, tmp_path, scheduler):
    image = write_pyramid(tmp_path / "a.tif", make_image(640, 512, seed=7), tile=64, levels=1)
    sections = {"tiles": {"size": 64, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:slow_corners"}
    for name, where in (("out", {"scheduler": scheduler}), ("alone", {})):
        summary = tilestream.run(config(image, tmp_path / name, **sections, compute={"shard_tiles": 2, **where}))
        assert summary.exit_code == 0
    assert same_store(opened(tmp_path / "alone", "a"), opened(tmp_path / "out", "a"))
    gc.collect()
