"""The server from which workers of this machine fork: it imports once, without threads and CUDA, what all of them need."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from multiprocessing import forkserver, resource_tracker

from tilestream.tiles.decoding.signals import FROM_TERMINALS, kept_from_children

PRELOADED = ["distributed", "tilestream.stages.embed_tiles", "tilestream.stages.mix_context", "tilestream.stages.finish_slide"]
"""What the server imports, in order."""


def begin_server() -> None:
    """Start the server, where it does not run yet; it imports while others go on. It ends with this process."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tilestream.runner.engines.in_server"])
    with kept_from_children(FROM_TERMINALS):
        resource_tracker.ensure_running()  # which takes Ctrl-C out of this thread's mask, and ignores it by itself
        with kept_from_children(FROM_TERMINALS):
            forkserver.ensure_running()


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
