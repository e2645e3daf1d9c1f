"""What a run will need takes seconds to be there, and is begun while its config is still being looked at: torch, the device, the server of workers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tilestream.config.schema import Config
from tilestream.runner.engines.fork_server import begin_server, import_zarr


def begin_early(config: Config) -> None:
    """In threads of their own, begin what a run of this config cannot do without; without effect where its output may be finished already.

    Whoever needs one of these meanwhile waits for it; what fails here fails again there, and is told there.
    """
    path, compute = config.output.path, config.compute
    if "://" in path or any(Path(path).glob("*")):
        return
    here = compute.scheduler.stays_here(compute.workers)
    _in_thread(lambda: importlib.import_module("torch"))
    if compute.device != "cpu":
        _in_thread(lambda: _wake_devices(compute.device, inline=compute.scheduler.kind == "inline", here=here))
    if compute.scheduler.kind == "local" and not here:
        _in_thread(_begin_workers)
    import_zarr()


def _in_thread(work: Callable[[], object]) -> None:
    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly, name="early", daemon=True).start()


def _wake_devices(name: str, *, inline: bool, here: bool) -> None:
    """Have the driver look for devices; give this process the one that it will use, or begin a worker for each."""
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return
    if inline or (here and (count.value == 1 or name.startswith("cuda:"))):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuDeviceGet(ctypes.byref(device), int(name.partition(":")[2] or 0)) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)  # torch uses this one, and finds it made
    elif here and count.value > 1:
        _begin_workers()


def _begin_workers() -> None:
    if sys.platform == "linux":
        begin_server()
    importlib.import_module("distributed")
