"""Local files before they are opened: what is no file for data is refused at once, for reading it might wait for ever or never end. And where a user's cache lies."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tilestream.config.urls.objects import STORE_SCHEMES
from tilestream.errors import ConfigError, InputError, TilestreamError

ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
"""Files of which one lies at the root of every Zarr store."""

MOSAIC = "mosaic://"
"""Stands before a folder, a pattern or a list of rasters that are one image; what follows is a local path."""

SMALL_FILE = 1024**2
"""Bytes of a file that a person or a program writes to say something short; a longer one is something else."""

_SEPARATOR = re.compile(r"sep=([,;\t])[ \t]*(?:\r\n|\r|\n)", re.IGNORECASE)

_KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def user_cache(name: str) -> Path:
    """A folder of the user's cache (XDG Base Directory Specification); it need not exist.

    Raises
    ------
    OSError
        The user has no home, as in a container with the number of nobody.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "tilestream" / name
    try:
        return Path.home() / ".cache" / "tilestream" / name
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, f"{error} Set HOME or XDG_CACHE_HOME") from error


def expand_path(path: str) -> str:
    """A path as a person writes it with `~`, `~user`, `$NAME` and `${NAME}` filled in; of a URL the variables alone.

    A name that is no variable stays where the path is a URL, whose passwords may hold any sign, or names what is there.

    Raises
    ------
    ValueError
        It is a path of Windows and this is none, a variable is not set, there is no such user, or the path holds a NUL; the words go behind the key's name.
    """
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL, which no path can")
    if os.sep == "/" and re.match(r"[A-Za-z]:(\\|/(?!/))|\\\\\w", path) and not os.path.lexists(path):
        raise ValueError(
            f"{path!r} is a path of Windows, which this system does not know. Write it as it is here, in WSL e.g. /mnt/c/slides"
        )
    expanded = os.path.expandvars(path)
    if "://" in path:
        return expanded
    unset = re.search(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*))", expanded)
    if unset and not os.path.lexists(path):
        name = unset[1] or unset[2]
        raise ValueError(f"{path!r} names the environment variable {name}, which is not set. Set it, or write the path out")
    found = os.path.expanduser(expanded)  # noqa: PTH111  (Path would take away what a trailing slash says)
    if found.startswith("~") and not os.path.lexists(found):
        raise ValueError(
            f"{path!r} begins with ~ and no user of this machine is meant. Write the path out, or ./ before a name that begins with ~"
        )
    return found


def names_mosaic(address: str) -> bool:
    """Whether an address names rasters that are one image: a VRT, a list of STAC items, or what `MOSAIC` stands before."""
    return address.startswith(MOSAIC) or ("://" not in address and address.lower().endswith((".vrt", ".json")))


def refuse_special(path: str | os.PathLike[str], key: str = "", error: type[TilestreamError] = InputError) -> None:
    """Refuse a FIFO, a socket or a device, named by `key` where it stands for one; what is not there, or a folder, is left to who opens it."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116  (a path that Path cannot hold is no file either)
    except (OSError, ValueError):
        return
    if kind in _KINDS:
        where = f"{key}: " if key else ""
        raise error(f"{where}{os.fspath(path)} is {_KINDS[kind]}, not a file. Write the data to a regular file and name that.")


COPY_FIRST = "Copy the file here first, or from here afterwards"
"""The way out where a URL cannot be read or written."""


def named_url(path: str | os.PathLike[str]) -> str:
    """The URL that is written where a local path belongs, with the slash that a Path takes away; "" of a local path."""
    words = os.fspath(path)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)", words)
    if found is None or os.path.lexists(words) or (found[2] == "/" and found[1].lower() not in STORE_SCHEMES):
        return ""
    slashes = "///" if found[1].lower() == "file" and found[2] == "/" else "//"
    return f"{found[1]}:{slashes}{words[found.end() :]}"


def refuse_url(path: str | os.PathLike[str], where: str) -> None:
    """Refuse a URL where only the local disk is read or written; raises ConfigError, whose words begin with `where`."""
    if url := named_url(path):
        raise ConfigError(f"{where}: {url} is a URL, but this takes a path of this machine. {COPY_FIRST}.")


class NoFileError(OSError):
    """A FIFO, a socket or a device lies where a file belongs; reading it might wait for ever or never end."""


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file, open for reading. Raises OSError: a NoFileError at once where it is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NoFileError(f"{os.fspath(path)} is not a file") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NoFileError(f"{os.fspath(path)} is not a file")
    return os.fdopen(descriptor, "rb")


def read_small_file(path: str | os.PathLike[str], key: str, way_out: str, limit: int = SMALL_FILE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises ConfigError, whose words end with the way out."""
    where = f"{key}: " if key else ""
    refuse_special(path, key, ConfigError)
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}there is no file {os.fspath(path)}. {way_out}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise ConfigError(f"{where}{os.fspath(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}. {way_out}") from error
    if len(data) > limit:
        raise ConfigError(f"{where}{os.fspath(path)} is larger than {limit // 1024} KiB, so it is something else. {way_out}")
    return data


def table_rows(data: bytes, path: str | os.PathLike[str], key: str) -> Iterator[list[str]]:
    """The rows of a table as programs write them, the header first: cells with commas, semicolons or tabs between, in UTF-8 or Excel's "Unicode text".

    What stands between cells is what the header has most of, or what a first line `sep=;` names, as Excel has it.

    Raises
    ------
    ConfigError
        It is no such text; names `key` and the file.
    """
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
        if told := _SEPARATOR.match(text):
            text, mark = text[told.end() :], told[1]
        else:
            header = next((line for line in text.splitlines() if line.strip()), "")
            mark = max((",", ";", "\t") if not os.fspath(path).lower().endswith(".tsv") else ("\t",), key=header.count)
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not text in UTF-8 (byte {error.start}). Save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise ConfigError(f"{key}: {path} is not a table: {error}.") from error
