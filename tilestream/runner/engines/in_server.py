"""Imported by the server from which workers fork: sets for it what dask sets for a worker, before libraries look, then imports what all of them need.

Nothing imports it besides.
"""

import contextlib
import ctypes
import importlib
import logging
import os
import signal
from collections.abc import Iterator

from tilestream.runner.engines.fork_server import PRELOADED, import_zarr

LOOK = 0.2
"""Seconds between looks at whether the run is still there."""

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # a worker then says itself how many torch is to have
    os.environ.setdefault(name, "1")
with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).mallopt(-1, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", "65536")))  # M_TRIM_THRESHOLD of malloc.h


def is_news(record: logging.LogRecord) -> bool:
    """Whether a worker's log tells more than that its run ended before it: connections that closed then."""
    return record.exc_info is None or not isinstance(record.exc_info[1], OSError)


# The run says itself what became of tasks that were cancelled, and of workers that left.
logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
logging.getLogger("distributed.worker").addFilter(is_news)


@contextlib.contextmanager
def ended_with_parent() -> Iterator[None]:
    """While the block runs, end this process soon after the one that started it. The server looks only once it has imported everything, which takes seconds."""
    parent = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    before = signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)  # what is imported need not know of it
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


with ended_with_parent():
    import_zarr()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # whoever needs it says so
            importlib.import_module(name)
