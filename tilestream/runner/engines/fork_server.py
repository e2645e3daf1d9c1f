"""The server from which workers of this machine fork: it imports once, without threads and CUDA, what all of them need."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
from multiprocessing import forkserver, resource_tracker

PRELOADED = [
    "tilestream.runner.engines.in_server", "distributed", "tilestream.stages.embed_tiles", "tilestream.stages.mix_context",
    "tilestream.stages.finish_slide",
]  # fmt: skip
"""What the server imports, in order."""


def begin_server() -> None:
    """Start the server, where it does not run yet; it imports while others go on. It ends with this process."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # which would take the mask away
    # A Ctrl-C reaches every process of a terminal: it is for the run, which ends its workers in order. They have the mask of what forks them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def import_zarr() -> None:
    """Where cupy is installed zarr imports it, which takes 1 s and 180 MB; nothing is read to a device through zarr."""
    if "cupy" in sys.modules:
        return
    sys.modules["cupy"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("zarr")
    finally:
        del sys.modules["cupy"]
