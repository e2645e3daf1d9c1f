"""Whose turn it is on a core where decoders and those who feed a device are more than there are cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call by machine; the C library has no function for it."""

LONGEST_TURN_NS = 100_000_000
"""Of what the kernel takes for a turn."""

_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr` of sched_setattr(2): size, policy, flags, nice, priority, runtime, deadline, period."""


def give_way() -> None:
    """Have this process, a decoder, leave its core at once to any that wakes up; what it computes in all is not less. Without effect where the system has no such thing.

    Threads that feed a device work for microseconds at a time and sleep in between. When all cores decode, each of their turns began up to
    3 ms late, a turn of the scheduler's, and the device waited for a tenth of its time. A process with long turns is due later than one
    with short ones that wakes, and yields to it (Linux 6.12 and later, `Documentation/scheduler/sched-eevdf.rst`); one of the batch policy
    never takes a core from others by waking (sched(7)). Neither changes its share, as a lower priority would: next to somebody else's
    program, an idle one would decode nothing.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    number = SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_BATCH, 0, os.nice(0), 0, LONGEST_TURN_NS, 0, 0)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)
