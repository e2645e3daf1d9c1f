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
    """Import zarr without what it imports where that is installed: cupy, which takes 1 s and 180 MB, for nothing is read to a device through zarr, and
    fsspec, which looks through all packages for its plug-ins, 0.4 s next to others. What fsspec makes is still taken, and its addresses are opened.
    """
    hidden = [name for name in ("cupy", "fsspec") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("zarr")
    finally:
        for name in hidden:
            del sys.modules[name]
    common = sys.modules["zarr.storage._common"]
    if "fsspec" in hidden and getattr(common, "FSMap", _Mapping) is None:  # as zarr has it where fsspec is not installed
        vars(common).update(FSMap=_Mapping, _has_fsspec=True)


class _LaterKind(type):
    """A class of another module, which need not be imported as long as nobody has made anything of it."""

    def __instancecheck__(cls, value: object) -> bool:
        module = sys.modules.get("fsspec.mapping")
        return module is not None and isinstance(value, module.FSMap)


class _Mapping(metaclass=_LaterKind):
    """`fsspec.mapping.FSMap`."""
