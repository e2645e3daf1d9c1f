"""Exceptions for users: each says what is wrong, the value, the limit and the way out, and carries its exit code."""

from __future__ import annotations

import errno
from typing import ClassVar


class TilestreamError(Exception):
    """Base of every error that a user is meant to read; the message is complete without a traceback."""

    exit_code: ClassVar[int] = 2
    """Exit status of the command line when this error ends a run."""


class ConfigError(TilestreamError):
    """The command or the config is wrong; nothing was opened or written."""

    exit_code = 2


class InputError(TilestreamError):
    """An input was refused: missing, unreadable, without the numbers that the config relies on."""

    exit_code = 3


class ReadError(TilestreamError):
    """Pixels of an open image could not be read; concerns single tiles, not the image."""

    exit_code = 3


class InterruptedRunError(TilestreamError):
    """The run ended early with its work kept; the same command resumes it."""

    exit_code = 5


class OutputError(TilestreamError):
    """The output is in use, or was made by another recipe."""

    exit_code = 6


class IncompleteError(TilestreamError):
    """A store that is read as finished is not finished, or its bytes are damaged."""

    exit_code = 4


_STORAGE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EFBIG})


def storage_error(error: OSError) -> InterruptedRunError | None:
    """What a failed write or read of an output means to a user, or None for an error that is not the storage's."""
    if error.errno not in _STORAGE:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return InterruptedRunError(
        f"the output cannot be written or read: {error.strerror}{where}. What is written is kept. "
        "Make room, or mend the disk or the connection, then run the same command again."
    )


EXIT_DONE, EXIT_REFUSED, EXIT_PARTIAL = 0, 3, 4
