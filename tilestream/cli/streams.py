"""Where a command speaks: it works on where nobody listens any more."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

GONE = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO})
"""What the system says where the other end of a pipe or a terminal is gone."""


class Stream(io.FileIO):
    """A stream whose words go nowhere once they cannot be written.

    A command says something to whoever listens; its work is in its output, and what became of that is in its exit code.
    """

    lost: OSError | None = None
    """Why words were lost, where somebody still waits for them: a reader that is gone does not."""

    def write(self, words: Any, /) -> int:
        """Write some bytes, or drop them; returns how many. Where whoever made the stream asked not to be waited for, as some pipes are, they are waited for."""
        try:
            while (written := super().write(words)) is None:
                select.select([], [self], [])
        except OSError as error:
            if error.errno not in GONE:
                self.lost = self.lost or error
            return memoryview(words).nbytes
        return written


def keep_streams() -> tuple[Stream, Stream]:
    """Have stdout and stderr be such streams, which are returned, and each standard descriptor that is closed lead nowhere.

    A closed descriptor is given to the next file that is opened: a word to stderr would be written into a store.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    out, err = Stream(1, "w", closefd=False), Stream(2, "w", closefd=False)
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    return out, err


def _text(raw: Stream, was: TextIO | None) -> TextIO:
    """Text to a stream as Python's own would write it; what somebody put in its place stays."""
    if was is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    if not isinstance(was, io.TextIOWrapper):
        return was
    return io.TextIOWrapper(
        io.BufferedWriter(raw), was.encoding, was.errors, line_buffering=was.line_buffering, write_through=was.write_through
    )  # fmt: skip
