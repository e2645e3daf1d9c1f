"""Imported first by the server from which workers fork: sets for it what dask sets for a worker, before libraries look.

Nothing imports it besides.
"""

import contextlib
import ctypes
import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # a worker then says itself how many torch is to have
    os.environ.setdefault(name, "1")
with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).mallopt(-1, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", "65536")))  # M_TRIM_THRESHOLD of malloc.h
