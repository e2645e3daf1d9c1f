"""Storage that does not answer for a while: the work is done again after a pause, and the run ends where it stays away."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from tilestream.errors import OutageError
from tilestream.stages.slide_task import STOP, check_stopped

T = TypeVar("T")

PAUSES = (5.0, 15.0, 40.0)
"""Seconds before the second try and each one after it."""


def outlast_outages(work: Callable[[], T], forget: Callable[[], None], wait: Callable[[float], object] | None = None) -> T:
    """What `work` gives, which is tried again where the storage of an image does not answer.

    Parameters
    ----------
    work : callable
        Does nothing twice that it did once.
    forget : callable
        Called before each further try: handles from before an outage never work again.
    wait : callable, optional
        Given the seconds of a pause; otherwise it ends early where the process is asked to stop.

    Raises
    ------
    OutageError
        The last try failed as well.
    """
    for pause in PAUSES:
        try:
            return work()
        except OutageError:
            forget()
            (wait or STOP.wait)(pause)
            check_stopped()
    try:
        return work()
    except OutageError as error:
        raise OutageError(
            f"{error}; {len(PAUSES) + 1} tries in {sum(PAUSES):g} s on {os.uname().nodename}. No tile was given up, and what is finished is kept. "
            "Mend the disk, the share or the connection, then run the same command again."
        ) from error
