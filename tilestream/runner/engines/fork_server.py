"""The server from which workers of this machine fork: it imports once, without threads and CUDA, what all of them need."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

PRELOADED = [
    "tilestream.runner.engines.in_server", "distributed", "tilestream.stages.embed_tiles", "tilestream.stages.mix_context",
    "tilestream.stages.finish_slide",
]  # fmt: skip
"""What the server imports, in order."""


def begin_server() -> None:
    """Start the server, where it does not run yet; it imports while others go on. It ends with this process."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
