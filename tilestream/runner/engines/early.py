"""What a run will need takes seconds to be there, and is begun while its config is still being looked at: torch, the device and the encoder on it, the server of workers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tilestream.config.heads import NO_ENCODER
from tilestream.config.python_objects import is_object_name
from tilestream.config.schema import Config
from tilestream.runner.engines.fork_server import begin_server, import_zarr
from tilestream.stages.hardware import has_driver


def begin_early(config: Config) -> None:
    """In threads of their own, begin what a run of this config cannot do without; without effect where its output may be finished already.

    Whoever needs one of these meanwhile waits for it; what fails here fails again there, and is told there.

    One thread at a time runs Python. Where this process may build its encoder on a device, which hardly needs Python, torch alone is imported
    first, so that everything else is imported while the encoder is built.
    """
    path, compute = config.output.path, config.compute
    if "://" in path or not _may_be_made(Path(path)):
        return
    here = compute.scheduler.stays_here(compute.workers)
    torch_there = _in_thread(lambda: importlib.import_module("torch"))
    if compute.device != "cpu" and has_driver():
        _in_thread(lambda: _wake_devices(config, here=here))
        if here:
            torch_there.join()
    if compute.scheduler.kind == "local" and not here:
        _in_thread(_begin_workers)
    import_zarr()


def _may_be_made(output: Path) -> bool:
    """Whether a folder is empty, or not there yet; one that cannot be looked into is refused soon enough."""
    try:
        return not any(output.iterdir())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, name="early", daemon=True)
    thread.start()
    return thread


def _wake_devices(config: Config, *, here: bool) -> None:
    """Have the driver look for devices; have the encoder built on the one that this process will use, or begin a worker for each."""
    name = config.compute.device
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return
    if config.compute.scheduler.kind == "inline" or (here and (count.value == 1 or name.startswith("cuda:"))):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuDeviceGet(ctypes.byref(device), int(name.partition(":")[2] or 0)) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)  # torch uses this one, and finds it made
            _build_encoder(config)
    elif here and count.value > 1:
        _begin_workers()


def _build_encoder(config: Config) -> None:
    """Give this process the worker that its run will ask for; code of the user's is run in its turn."""
    name = config.encoder.name
    if name == NO_ENCODER or is_object_name(name):
        return
    from tilestream.encoders.registry import is_others
    from tilestream.stages.worker import worker_for
    from tilestream.stages.worker_settings import worker_settings

    if not is_others(name):
        worker_for(worker_settings(config))


def _begin_workers() -> None:
    if sys.platform == "linux":
        begin_server()
    importlib.import_module("distributed")
