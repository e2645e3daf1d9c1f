"""One run, one way of computing: what the config leaves open is settled once, and a worker that cannot do it is refused by name."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch

import tilestream
from tests.stages.test_worker import settings
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened
from tilestream.config.load import load_config
from tilestream.errors import OutputError, UnfitWorkerError
from tilestream.runner.engines.executors import open_engine
from tilestream.stages import pinning
from tilestream.stages.embed_tiles import describe_encoder
from tilestream.stages.pinning import check_machine
from tilestream.stages.worker import Worker
from tilestream.stages.worker_settings import worker_settings

VIT = {"name": "vit_tiny_patch16_224", "args": {"img_size": 64}}
TILES = {"size": 64, "level": 0, "tissue": "none"}

UNITS = """
import importlib.abc, importlib.machinery, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def load_and_change(module):
            load(module)
            module.cpu._is_amx_tile_supported = lambda: {units}
        spec.loader.exec_module = load_and_change
        return spec
sys.meta_path.insert(0, Finder())
"""
"""A machine that has matrix units for bf16, or none: sitecustomize of its processes."""


class Cluster:
    """A scheduler, and workers with and without matrix units that join it."""

    def __init__(self, folder):
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self._start("distributed.cli.dask_scheduler", "--port", "0", environment={})
        deadline = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _start(self, module, *arguments, environment):
        command = [sys.executable, "-m", module, "--scheduler-file", str(self.file), "--no-dashboard", *arguments]
        self.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment}))

    def add_worker(self, *, units):
        home = self.folder / f"units {units}"
        home.mkdir(exist_ok=True)
        (home / "sitecustomize.py").write_text(UNITS.format(units=units))
        root = str(Path(tilestream.__file__).parents[1])
        with distributed.Client(scheduler_file=str(self.file), set_as_default=False) as client:
            before = len(client.scheduler_info()["workers"])
            python = {"PYTHONPATH": os.pathsep.join([str(home), root])}
            self._start("distributed.cli.dask_worker", "--nthreads", "2", "--no-nanny", environment=python)
            client.wait_for_workers(before + 1, timeout=60)

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(256, 256, seed=2), tile=64, levels=1)


SHARDS = {"batch_size": 4, "shard_tiles": 2}
"""Where a tile lies in its batch may show in the last bits of fp32, so runs that are held against each other have the same shards."""


def rows(image, output, **encoder):
    tilestream.run(config(image, output, encoder={**VIT, **encoder}, tiles=TILES, compute=SHARDS))
    return opened(output, "a").embeddings[:]


@pytest.mark.slow
def test_a_worker_that_joins_late_and_lacks_what_the_first_one_has_is_refused_by_name(cluster, image, tmp_path):
    cluster.add_worker(units=True)
    compute = {"scheduler": f"file:{cluster.file}", "threads": 1, "batch_size": 4, "shard_tiles": 1}
    checked, said = load_config(config(image, tmp_path / "out", encoder=VIT, tiles=TILES, compute=compute)), []
    with open_engine(checked.compute, said.append) as engine:
        _, pinned = engine.call(describe_encoder, worker_settings(checked))
        engine.call_all(describe_encoder, pinned)
        cluster.add_worker(units=False)
        while not said:
            engine.wait_next(60)
        assert engine.workers == 1
        engine.submit("key", abs, -42)  # the others go on
        while (ended := engine.wait_next(60)) is None:
            pass
        assert (ended[0], ended[1].value) == ("key", 42)
    (refused,) = said
    assert f"worker {os.uname().nodename} (process" in refused
    assert "no matrix units for bf16" in refused
    assert "Set encoder.precision to fp32 or bf16" in refused


def test_a_worker_of_another_version_is_refused():
    pinned = Worker(settings(precision="fp32")).pinned
    other = replace(pinned, pinned=replace(pinned.pinned, versions=(("torch", "1.0"),)))
    with pytest.raises(UnfitWorkerError, match=r"it has torch [\d.]+, and the run's first worker has 1.0. Install the same there"):
        Worker(other)


@pytest.mark.slow
def test_workers_of_two_kinds_from_the_start_settle_on_one(cluster, image, tmp_path):
    for units in (True, False):
        cluster.add_worker(units=units)
    compute = {"scheduler": f"file:{cluster.file}", "threads": 1, **SHARDS}
    summary = tilestream.run(config(image, tmp_path / "out", encoder=VIT, tiles=TILES, compute=compute))
    store = opened(tmp_path / "out", "a")
    precision = store.recipe["encoder"]["precision"]
    assert summary.workers == (1 if precision == "bf16" else 2)
    np.testing.assert_array_equal(store.embeddings[:], rows(image, tmp_path / precision, precision=precision))


def test_the_only_worker_of_a_kind_that_is_wanted_is_found_missing(monkeypatch):
    pinned = Worker(settings(precision="fp32")).pinned
    check_machine(replace(pinned, pinned=replace(pinned.pinned, matrix_units=False)))
    monkeypatch.setattr(pinning, "has_matrix_units", lambda device: False)
    with pytest.raises(UnfitWorkerError, match="no matrix units"):
        Worker(replace(pinned, pinned=replace(pinned.pinned, matrix_units=True)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnfitWorkerError, match="no CUDA device"):
        Worker(replace(pinned, device="cuda"))
    with pytest.raises(UnfitWorkerError, match="other weights"):
        Worker(replace(pinned, pinned=replace(pinned.pinned, weights_sha256="other")))


@pytest.mark.slow
def test_exact_mode_pins_the_instruction_set(image, tmp_path):
    context = {"window": 4, "depth": 1, "heads": 3, "exact": True}
    given = config(image, tmp_path / "out", encoder=VIT, tiles=TILES, context=context)
    tilestream.run(given)
    here = torch.backends.cpu.get_cpu_capability()
    assert opened(tmp_path / "out", "a").recipe["compute"]["cpu_capability"] == here
    pinned = Worker(settings(precision="fp32", exact=True)).pinned
    with pytest.raises(UnfitWorkerError, match=rf"kernels are {here}, those of the run's first worker VSX.*Set ATEN_CPU_CAPABILITY"):
        check_machine(replace(pinned, pinned=replace(pinned.pinned, cpu_capability="VSX")))
    if here == "DEFAULT":
        pytest.skip("this machine has one instruction set only")
    for mark in ("complete.json", "shards/tiles-000000.json"):
        (tmp_path / "out" / "a.zarr" / ".tilestream" / mark).unlink()  # something is left to do
    (tmp_path / "c.json").write_text(json.dumps(given))
    command = [sys.executable, "-m", "tilestream", "run", str(tmp_path / "c.json")]
    other = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"})
    assert other.returncode == OutputError.exit_code
    assert f"compute.cpu_capability was '{here}' and is now 'DEFAULT'" in other.stderr
    assert "Set ATEN_CPU_CAPABILITY" in other.stderr
