"""Imported first by the server from which workers fork: sets for it what dask sets for a worker, before libraries look.

Nothing imports it besides.
"""

import contextlib
import ctypes
import logging
import os

from tilestream.runner.engines.fork_server import import_zarr

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
import_zarr()
