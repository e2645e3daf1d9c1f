"""Exceptions for users: each says what is wrong, the value, the limit and the way out, and carries its exit code."""

from __future__ import annotations

import errno
import importlib
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

_T = TypeVar("_T")

HIDDEN = "***"
"""What stands in the place of a secret."""
_HARMLESS = ("width", "height", "seed", "version", "versionid", "region")
"""Names in a query that let nobody in."""
_URL = re.compile(r"(?<![\w+.-])(?=[A-Za-z][\w+.-]*://)")
_USER = re.compile(r"(?<=://)(?:[^\s/?#\"'<>]*@|[^\s/?#\[\"'<>@:]*:(?!\d+(?:[/?#\s]|$))[^\s\"'<>]*@)")
_QUERY = re.compile(r"([?&])([^\s=&#\"'<>]+)(=[^\s&#\"'<>]*)?|(#)[^\s\"'<>]+")

_SENTENCE = re.compile(r"[.,:;)]+$")
"""What follows an address in a sentence, and is none of its own."""


def without_credentials(data: _T) -> _T:
    """Text, or plain data that holds text, in which addresses show neither user and password nor what their queries hold.

    Servers are free to name their keys, so every value of a query is hidden but those that are known to let nobody in. All that is written or said
    of an address goes through here; the address itself goes to workers as it is.
    """
    found: Any = data
    if isinstance(data, str):
        found = "".join(_hide(part) for part in _URL.split(data)) if "://" in data else data
    elif isinstance(data, dict):
        found = {key: without_credentials(value) for key, value in data.items()}
    elif isinstance(data, list | tuple):
        found = type(data)(without_credentials(value) for value in data)
    result: _T = found
    return result


def _hide(part: str) -> str:
    """The same for a text in which at most one address stands, at its beginning."""
    if "://" not in part or part.startswith(("sample://", "mosaic://")):
        return part
    return _QUERY.sub(_hide_value, _USER.sub(f"{HIDDEN}@", part))


def _hide_value(match: re.Match[str]) -> str:
    sign, key, value, fragment = match.groups()
    end = _SENTENCE.search(match[0]) if match.string[match.end() : match.end() + 1] in ("", " ", "\n") else None
    behind = end[0] if end is not None else ""
    if fragment or not (value or "").removesuffix(behind).strip(
        "="
    ):  # the last of a bare secret may be padding: what stands before it is no name
        return f"{fragment or sign}{HIDDEN}{behind}"
    return match[0] if key.lower() in _HARMLESS else f"{sign}{key}={HIDDEN}{behind}"


class TilestreamError(Exception):
    """Base of every error that a user is meant to read; the message is complete without a traceback, and holds no credentials."""

    exit_code: ClassVar[int] = 2
    """Exit status of the command line when this error ends a run."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class ConfigError(TilestreamError):
    """The command or the config is wrong; nothing was opened or written."""

    exit_code = 2


class UnfitWorkerError(ConfigError):
    """A worker cannot compute what the first worker of its run computes; another one may."""


def load_needed(what: str, extra: str, *modules: str, otherwise: str = "") -> list[Any]:
    """Modules of an optional package, which `what` needs.

    Raises
    ------
    ConfigError
        It is not installed; names the extra that brings it.
    """
    try:
        return [importlib.import_module(name) for name in modules]
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} needs the package {modules[0]}, which is not installed: pip install 'tilestream[{extra}]'{otherwise}."
        ) from error


class InputError(TilestreamError):
    """An input was refused: missing, unreadable, without the numbers that the config relies on."""

    exit_code = 3


class NotThereError(InputError):
    """A file that an input names is not there."""


class CodeError(InputError):
    """Code that the user brought (an encoder, its factory, a tissue function) failed, as it would again; its own traceback is a note of the error."""


class ReadError(TilestreamError):
    """Pixels of an open image could not be read; concerns single tiles, not the image."""

    exit_code = 3


class InterruptedRunError(TilestreamError):
    """The run ended early with its work kept; the same command resumes it."""

    exit_code = 5


class OutageError(InterruptedRunError):
    """Storage that holds an input does not answer: nothing is known to be damaged, and it may answer again."""


class OutputError(TilestreamError):
    """The output is in use, or was made by another recipe."""

    exit_code = 6


class IncompleteError(TilestreamError):
    """A store that is read as finished is not finished, or its bytes are damaged."""

    exit_code = 4


_STORAGE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EFBIG})


_OUTAGES = frozenset({
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.ENOLINK, errno.ECOMM, errno.EREMOTEIO,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ECONNABORTED, errno.ESHUTDOWN, errno.EPIPE,
})  # fmt: skip
"""What the system says where a disk, a share or a connection is gone, whatever lies there."""


def outage(error: BaseException, address: str, *, missing: bool = False) -> OutageError | None:
    """What an error of reading an input means where storage does not answer; None for an error of another kind.

    The errors that it came from count as well. With `missing`, so does a file that is not there: one that was there a moment ago.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OutageError):
            return seen
        lost = isinstance(seen, ConnectionError | TimeoutError) or (isinstance(seen, OSError) and seen.errno in _OUTAGES)
        if lost or (missing and isinstance(seen, FileNotFoundError | NotThereError)):
            words = (
                "the file is gone" if isinstance(seen, FileNotFoundError | NotThereError) else str(getattr(seen, "strerror", None) or seen)
            )
            return OutageError(f"{address}: its storage does not answer: {words or type(seen).__name__}")
        seen = seen.__cause__ or seen.__context__
    return None


def storage_error(error: OSError) -> InterruptedRunError | None:
    """What a failed write or read of an output means to a user, or None for an error that is not the storage's."""
    if error.errno not in _STORAGE:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return InterruptedRunError(
        f"the output cannot be written or read: {error.strerror}{where}. What is written is kept. "
        "Make room, or mend the disk or the connection, then run the same command again."
    )


_PLACES = frozenset({
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV,
})  # fmt: skip
"""What the system says where a path is the wrong one, or not this user's to read or write."""


def place_error(error: OSError) -> ConfigError | None:
    """What it means to a user that a place cannot be read or written; None for an error that no other path, and no other right, would mend."""
    if error.errno not in _PLACES or not error.filename:
        return None
    return ConfigError(
        f"{os.fsdecode(error.filename)}: {error.strerror}. Name another place, or give yourself the right to read and write there."
    )


LONGEST_REASON = 300
"""Characters of a foreign exception's message in one of ours."""


@contextmanager
def user_code(what: str, doing: str, *, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Turn an exception of code that the user brought into a CodeError; our own errors, and those `passing`, stay what they are.

    Parameters
    ----------
    what : str
        The code, as the config names it.
    doing : str
        What it was called for, e.g. a slide and its tiles.
    passing : tuple of types
        Exceptions that are not the code's fault, such as a lack of memory.
    """
    not_its_fault: tuple[type[BaseException], ...] = (TilestreamError, MemoryError, *passing)
    try:
        yield
    except not_its_fault:
        raise
    except Exception as error:  # noqa: BLE001  # whatever the code raises
        words = next(iter(str(error).splitlines()), "")[:LONGEST_REASON]
        meant = CodeError(f"{what} failed on {doing}: {type(error).__name__}: {words}")
        meant.add_note(without_credentials(_own_traceback(error)))
        raise meant from None  # the note has it, also where the error crossed from another process


def _own_traceback(error: Exception) -> str:
    """The traceback of an exception from the first frame on that is neither ours nor torch's."""
    found = traceback.TracebackException.from_exception(error)
    ours = str(Path(__file__).parent)
    own = next((k for k, frame in enumerate(found.stack) if not _is_plumbing(frame.filename, ours)), 0)
    found.stack = traceback.StackSummary.from_list(list(found.stack)[own:])
    return "".join(found.format()).rstrip()


def _is_plumbing(filename: str, ours: str) -> bool:
    """Whether a frame belongs to what calls the user's code: this package, torch, the standard library's pools and context managers."""
    parts = Path(filename).parts
    return filename.startswith(ours) or "torch" in parts or parts[-2:-1] == ("futures",) or parts[-1] in ("contextlib.py", "thread.py")


EXIT_DONE, EXIT_REFUSED, EXIT_PARTIAL = 0, 3, 4
