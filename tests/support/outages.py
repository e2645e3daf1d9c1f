"""Storage that goes away: reads of image files fail from some read on, for a while or for good."""

import errno
import itertools
import os
from pathlib import Path

from tests.support.encoders import Corners
from tilestream.stages import slide_task


class Outage:
    """In place of `os.pread`: after `after` reads of an image, the next `count` of them fail as `kind` says; none before `begun` says so."""

    def __init__(self, after, count, kind, begun=lambda: True):
        self.failing, self.reads = range(after + 1, after + count + 1), itertools.count(1)
        self.kind, self.read, self.begun = kind, os.pread, begun

    def __call__(self, number, size, offset):
        if Path(f"/proc/self/fd/{number}").readlink().suffix == ".tif" and self.begun() and next(self.reads) in self.failing:
            raise OSError(self.kind, os.strerror(self.kind))
        return self.read(number, size, offset)


def corners_in_an_outage(count):
    """An encoder of a worker process whose share is gone for a while; pauses are none."""
    slide_task.PAUSES = (0.0, 0.0, 0.0)
    os.pread = Outage(12, count, errno.ESTALE)
    return Corners()


class Parts:
    """In place of `os.pread`: of any read, no more than `most` bytes come at once; those behind them fail, if `fails` says so of the file and the place."""

    def __init__(self, most, fails=lambda path, start: False):
        self.most, self.fails, self.read = most, fails, os.pread

    def __call__(self, number, size, offset):
        if self.fails(Path(f"/proc/self/fd/{number}").readlink(), offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.read(number, min(size, self.most), offset)
