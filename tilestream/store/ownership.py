"""What is ours and what is not: nothing that lies anywhere is deleted, overwritten or written into unless it bears our mark."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tilestream.config.local_files import ZARR_MARKS
from tilestream.config.slide_list import SlideRef
from tilestream.errors import ConfigError
from tilestream.store.folder import Folder

MARK = ".tilestream/store.json"
"""Written before anything else of a slide's store, and deleted by nothing: whatever else is missing, the folder is ours."""

_MARKED = json.dumps({"tilestream": "store", "format": 1}).encode()

RECORDS = {".tilestream/base.json": "attributes", ".tilestream/complete.json": "objects"}
"""Our records of a store that tell that it is ours where the mark is lost, with a key that each has."""

_BEGUN = re.compile(r"\.tilestream/store(\.json|\.[0-9a-f]{32}\.partial)")
"""What a process that was killed while it wrote the mark may leave: a place with nothing else in it is free."""


def is_ours(folder: Folder) -> bool:
    """Whether a folder is a slide's store of ours, finished or not: it bears the mark, or where that is lost our recipe or another record of ours."""
    mark = _read_json(folder, MARK)
    if isinstance(mark, dict) and mark.get("tilestream") == "store":
        return True
    group = _read_json(folder, "zarr.json")
    about = group.get("attributes") if isinstance(group, dict) else None
    about = about.get("tilestream") if isinstance(about, dict) else None
    if isinstance(about, dict) and isinstance(about.get("recipe"), dict):
        return True
    kept = ((_read_json(folder, name), key) for name, key in RECORDS.items())
    return any(isinstance(record, dict) and {key, "check"} <= record.keys() for record, key in kept)


def mark_harm(folder: Folder) -> list[str]:
    """What is wrong with the mark of a store of ours; empty where nothing is."""
    found = folder.get(MARK)
    return [] if found == _MARKED else [f"{MARK}: {'missing' if found is None else 'bytes differ from what was written'}"]


def is_begun(folder: Folder) -> bool:
    """Whether a folder is what a creation leaves that was cut short before its mark: nothing."""
    return folder.local is not None and folder.local.is_dir() and not folder.local.is_symlink() and _is_free(folder)


def is_zarr(folder: Folder) -> bool:
    """Whether a folder is a Zarr group or array, whosever."""
    return any(folder.exists(name) for name in ZARR_MARKS)


def claim(folder: Folder) -> None:
    """Make a folder ours, or see that it is: what is done in it afterwards may be resumed, started over and deleted.

    Raises
    ------
    ConfigError
        Something else lies there: a file, a link, or a folder or prefix that holds anything and is not ours.
    """
    harm = mark_harm(folder)
    if folder.local is None and not harm:
        return  # there are no links among objects
    if problem := _problem(folder):
        raise ConfigError(problem)
    if harm:
        folder.put(MARK, _MARKED)


def refuse_foreign(output: Folder, slides: Iterable[SlideRef], files: Iterable[str] = ()) -> None:
    """Refuse an output that cannot be written to without touching what is not ours, before anything is done.

    Parameters
    ----------
    output : Folder
        Where stores are to lie.
    slides : iterable of SlideRef
        Whose stores.
    files : iterable of str
        Names of JSON files of ours in the output that are to be replaced; ours hold the key `tilestream`.

    Raises
    ------
    ConfigError
        The output is a file, lies in a Zarr or in one of its slides or holds one of them, or holds something else where a store or a
        file of ours belongs.
    """
    if output.local is not None:
        if output.local.exists() and not output.local.is_dir():
            raise ConfigError(f"output: {output.address} is a file. Name a folder.")
        refuse_zarr(output.local, "output")
        for name in (".tilestream", "runs"):
            if (link := output.local / name).is_symlink():
                raise ConfigError(
                    f"output: {link} is a link to {link.resolve()}: nothing is written through it. Put the folder in its place."
                )
    elif is_zarr(output):
        raise ConfigError(f"output: {output.address} is a Zarr, which nothing is written into. Choose another folder.")
    present = set(output.children())
    for slide in slides:
        _refuse_overlap(output, slide)
        place = f"{slide.id}.zarr"
        if place in present and (problem := _problem(output / place)):
            raise ConfigError(problem)
        if place in present and output.local is None and output.exists(place):
            raise ConfigError(f"output: {output.address}/{place} is an object, where a slide's store belongs. Choose another output.")
    for name in present.intersection(files):
        about = _read_json(output, name)
        if output.get(name) != b"" and not (isinstance(about, dict) and "tilestream" in about):
            raise ConfigError(
                f"output: {output.address}/{name} is there and was not written by tilestream. Move it, or choose another output."
            )


def refuse_unwritable(output: Folder) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it; nothing is made to find out.

    Raises
    ------
    ConfigError
        A file or a broken link stands in the way, or this user has no right to write there.
    """
    if output.local is None:
        return
    place = output.local.absolute()
    there = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    way = "" if there == place else f", where {output.address} is to be made"
    if there.is_symlink() and not there.exists():
        raise ConfigError(f"output: {there} is a link to {there.readlink()}, which is not there. Make that folder, or remove the link.")
    if not there.is_dir():
        raise ConfigError(f"output: {there} is a file{way}. Name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"output: this user may not write to {there}{way}. Name another folder, or ask for the right to write there.")


def refuse_zarr(place: Path, option: str) -> None:
    """Refuse to write into somebody's Zarr, or among the objects of a store of ours.

    Raises
    ------
    ConfigError
        `place` is a Zarr group or array, or lies in one; the message begins with `option`.
    """
    where = place.resolve()
    for folder in (where, *where.parents):
        if any((folder / name).exists() for name in ZARR_MARKS):
            zarr = "a slide's store" if is_ours(Folder(str(folder), read_only=True)) else "a Zarr"
            raise ConfigError(f"{option}: {place} lies in {zarr}, {folder}, which nothing is written into. Choose another folder.")


def _problem(folder: Folder) -> str:
    """Why a store may not be made in a folder; empty where it may."""
    place = folder.address
    if folder.local is not None and folder.local.is_symlink():
        return f"output: {place} is a link to {folder.local.resolve()}. Remove the link, or choose another output."
    if folder.local is not None and folder.local.exists() and not folder.local.is_dir():
        return f"output: {place} is a file, where a slide's store belongs. Move it, or choose another output."
    if (folder.local is None and not folder.children()) or is_ours(folder) or _is_free(folder):
        link = None if folder.local is None else _link_below(folder.local)
        return (
            ""
            if link is None
            else f"output: {link} is a link to {link.resolve()}: no store is written through it. Put the folder in its place."
        )
    return f"output: {place} is there and is no store of tilestream: nothing in it is touched. Move it, or choose another output."


def _link_below(place: Path) -> Path | None:
    """A link to a folder among the folders below a place; None where there is none."""
    for folder, inner, _ in os.walk(place):
        if link := next((Path(folder) / name for name in inner if (Path(folder) / name).is_symlink()), None):
            return link
    return None


def _is_free(folder: Folder) -> bool:
    """Whether there is nothing in a folder but, at most, a mark that was being written."""
    if set(folder.children()) - {".tilestream"}:
        return False
    return all(_BEGUN.fullmatch(key) for key in folder.names(".tilestream"))


def _refuse_overlap(output: Folder, slide: SlideRef) -> None:
    """Refuse an output that holds a slide, or lies in one."""
    if "://" not in slide.address and not Path(slide.address).is_absolute():
        return  # the mere name of a slide that was imported
    ours, its = _resolved(output.address), _resolved(slide.address)
    linked = output.local is not None and Path(slide.address).absolute().is_relative_to(output.local.absolute())
    if linked or its == ours or its.startswith(f"{ours.rstrip('/')}/"):
        raise ConfigError(f"output: {output.address} holds {slide.address}, one of its slides. Choose a folder of its own for the output.")
    if ours.startswith(f"{its.rstrip('/')}/"):
        raise ConfigError(f"output: {output.address} lies in {slide.address}, one of its slides. Choose a folder outside of it.")


def _resolved(address: str) -> str:
    """An address that equals another one of the same place: local paths without links, with `file://` or not."""
    if address.startswith("file://"):
        address = url2pathname(urlsplit(address).path)
    return address if "://" in address else Path(address).resolve().as_posix()


def _read_json(folder: Folder, key: str) -> object:
    """What a JSON object says; None where there is none, or none that can be read."""
    try:
        return json.loads(folder.get(key) or b"null")
    except (ValueError, RecursionError):
        return None
