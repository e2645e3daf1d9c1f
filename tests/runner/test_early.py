"""What a run will need is begun at once, and nothing where it may have nothing to do."""

import ctypes
import subprocess
import sys
import types

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.config.load import load_config
from tilestream.runner.engines import early
from tilestream.stages import worker
from tilestream.stages.worker import Worker


@pytest.fixture
def begun(monkeypatch):
    """Names of what was begun."""
    names = []
    monkeypatch.setattr(early, "_in_thread", lambda work: work() or types.SimpleNamespace(join=lambda: names.append("wait")))
    monkeypatch.setattr(early, "has_driver", lambda: True)
    monkeypatch.setattr(early.importlib, "import_module", names.append)
    monkeypatch.setattr(early, "_wake_devices", lambda *_, **__: names.append("devices"))
    monkeypatch.setattr(early, "begin_server", lambda: names.append("server"))
    monkeypatch.setattr(early, "import_zarr", lambda: names.append("zarr"))
    return names


def begin(tmp_path, output="out", **compute):
    where = output if "://" in output else tmp_path / output
    early.begin_early(load_config(config(tmp_path / "a.tif", where, compute=compute)))


@pytest.mark.parametrize(
    ("compute", "names"),
    [
        ({"scheduler": "inline", "device": "cpu"}, ["torch", "zarr"]),
        ({"scheduler": "local", "device": "auto"}, ["torch", "devices", "wait", "zarr"]),
        ({"scheduler": "tcp://127.0.0.1:1", "device": "auto"}, ["torch", "devices", "zarr"]),
        ({"scheduler": "local", "device": "cpu", "workers": 2}, ["torch", "server", "distributed", "zarr"]),
        ({"scheduler": "tcp://127.0.0.1:1", "device": "cpu"}, ["torch", "zarr"]),
    ],
)
def test_a_new_output_begins_what_its_run_cannot_do_without(tmp_path, begun, compute, names):
    begin(tmp_path, **compute)
    assert begun == names


def test_an_output_that_holds_something_may_be_finished(tmp_path, begun):
    (tmp_path / "out").mkdir()
    begin(tmp_path, scheduler="inline")
    assert begun
    begun.clear()
    (tmp_path / "out" / "a.zarr").mkdir()
    begin(tmp_path, scheduler="inline")
    begin(tmp_path, "memory://bucket/out", scheduler="inline")
    assert begun == []


class Driver:
    """A machine with so many CUDA devices."""

    def __init__(self, devices):
        self.devices, self.retained = devices, []

    def cuInit(self, flags):
        return 0 if self.devices else 100

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0 if number < self.devices else 101

    def cuDevicePrimaryCtxRetain(self, context, device):
        self.retained.append(device.value)
        return 0


@pytest.mark.parametrize(
    ("devices", "name", "scheduler", "workers", "retained", "server"),
    [
        (0, "auto", "inline", "auto", [], False),
        (1, "auto", "local", "auto", [0], False),
        (4, "auto", "local", "auto", [], True),
        (4, "auto", "inline", "auto", [0], False),
        (4, "cuda:2", "local", "auto", [2], False),
        (4, "auto", "local", 2, [], False),
    ],
)
def test_a_device_is_woken_and_given_its_encoder_where_this_process_uses_it(
    tmp_path, monkeypatch, devices, name, scheduler, workers, retained, server
):
    driver, begun, built = Driver(devices), [], []
    monkeypatch.setattr(early, "ctypes", types.SimpleNamespace(**{**vars(ctypes), "CDLL": lambda _: driver}))
    monkeypatch.setattr(early, "_begin_workers", lambda: begun.append("server"))
    monkeypatch.setattr(early, "_build_encoder", built.append)
    checked = load_config(
        config(tmp_path / "a.tif", tmp_path / "out", compute={"scheduler": scheduler, "workers": workers, "device": name})
    )
    early._wake_devices(checked, here=checked.compute.scheduler.stays_here(checked.compute.workers))
    assert driver.retained == retained
    assert bool(begun) == server
    assert bool(built) == bool(retained)


def test_the_encoder_that_is_built_early_is_the_one_that_the_run_uses(tmp_path, monkeypatch):
    """On a processor, where it is not built early: what is built is the same."""
    built = []

    class Counted(Worker):
        def __init__(self, *arguments):
            built.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(worker, "Worker", Counted)
    monkeypatch.setattr(worker, "_worker", None)
    slide = write_pyramid(tmp_path / "a.tif", make_image(64, 64), tile=64, levels=1, compression=None)
    given = config(slide, tmp_path / "out", encoder="patch_embed", compute={"scheduler": "inline", "device": "cpu"})
    early._build_encoder(load_config(given))
    assert len(built) == 1
    assert tilestream.run(given).exit_code == 0
    assert len(built) == 1


@pytest.mark.parametrize("name", ["tests.support.encoders:mean_rgb", "none"])
def test_no_code_of_others_is_run_early(tmp_path, monkeypatch, name):
    monkeypatch.setattr(worker, "worker_for", lambda _: pytest.fail("was built"))
    early._build_encoder(load_config(config(tmp_path / "a.tif", tmp_path / "out", encoder=name)))


SEEN = """
import sys, types
class Cupy:
    @staticmethod
    def find_spec(name, *_):
        assert name != "cupy", "zarr has looked for it"
sys.meta_path.insert(0, Cupy)
from tilestream.runner.engines.fork_server import import_zarr
import_zarr()
import zarr
assert "fsspec" not in sys.modules and "cupy" not in sys.modules
sys.meta_path.remove(Cupy)
array = zarr.create_array(zarr.storage.MemoryStore(), shape=(4,), dtype="i4")
array[:] = 7
import fsspec
from fsspec.mapping import FSMap
memory = fsspec.filesystem("memory")
made = zarr.create_array(FSMap("there", memory), shape=(4,), dtype="i4")
made[:] = 9
assert zarr.open("memory://there", mode="r")[:].tolist() == [9] * 4
assert zarr.open(FSMap("there", memory), mode="r")[:].tolist() == [9] * 4
import_zarr()
assert zarr.storage._common.FSMap is not None
"""


def test_zarr_comes_without_what_takes_long_and_still_takes_all_of_it():
    subprocess.run([sys.executable, "-W", "ignore", "-c", SEEN], check=True)


def test_where_fsspec_is_there_already_zarr_has_its_own_class():
    code = "import fsspec.mapping; from tilestream.runner.engines.fork_server import import_zarr; import_zarr(); import zarr; assert zarr.storage._common.FSMap is fsspec.mapping.FSMap"
    subprocess.run([sys.executable, "-c", code], check=True)
