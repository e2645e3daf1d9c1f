"""A source that hangs or dies where it is told to, for tests of isolated reading."""

import os
import signal
import time

import numpy as np

from tilestream.errors import InputError
from tilestream.geometry import Level, Region, Size
from tilestream.sources.base import SlideInfo, Source


class Crashing(Source):
    """480 x 480 px, the grey level of each region its row; the address says at which pixels reading hangs or dies: `hang:96,0;die:0,192`."""

    def __init__(self, address: str) -> None:
        self.info = SlideInfo(address, "crashing", "a test", (Level(Size(480, 480), 1.0),), 0.5, "a test")
        self._bad = {}
        for part in filter(None, address.removeprefix("crash://").split(";")):
            kind, _, place = part.partition(":")
            self._bad[tuple(int(v) for v in place.split(","))] = kind

    def _read(self, level: int, region: Region):
        kinds = {kind for (y, x), kind in self._bad.items() if 0 <= y - region.px_y < region.height and 0 <= x - region.px_x < region.width}
        if "hang" in kinds:
            time.sleep(600)
        if "die" in kinds:
            os.kill(os.getpid(), signal.SIGSEGV)
        return np.full((region.height, region.width, 3), region.px_y % 251, np.uint8)

    def close(self) -> None:
        """There is nothing to release."""


def open_crashing(address, options):
    """As `open_source`."""
    del options
    if address == "refused":
        raise InputError("refused: this one cannot be opened")
    return Crashing(address)
