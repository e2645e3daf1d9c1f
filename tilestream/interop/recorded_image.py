"""The image that a store was made of, opened from where the store says that it lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tilestream.config.local_files import MOSAIC
from tilestream.errors import InputError
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions
from tilestream.sources.made.slide import drawn_sample
from tilestream.store.slide import Slide


def open_recorded(slide: Slide, options: SourceOptions, roots: Sequence[str] = ()) -> Source:
    """The image of a slide, where it may be opened.

    A store may come from anybody, and what it names is opened with the rights of whoever looks at it. So what it names is opened below `roots`; elsewhere
    only a local file, or a sample that was drawn before, that a local store of this user's own names, and shown only if its bytes are those that the store was made of.

    Parameters
    ----------
    slide : Slide
        The store.
    options : SourceOptions
        How the image is read.
    roots : sequence of str
        Folders, or URLs, below which images may be opened whatever the store.

    Raises
    ------
    InputError
        The image may not be opened, cannot be, or is another one.
    """
    address = str(slide.source["address"])
    place = address.removeprefix(MOSAIC)
    trusted = any(_is_below(place, root) for root in roots)
    remote = "://" in place and not (place.startswith("sample://") and drawn_sample(place))
    if not trusted and (remote or not _is_own(slide)):
        whose = "it is not on this machine" if remote else "the store belongs to somebody else"
        raise InputError(f"{address} is not opened on the word of {slide.path} alone: {whose}. Name the folder of the slides: --slides.")
    source = open_source(address, options)
    known = slide.source.get("fingerprint")
    if not trusted and known and source.info.backend == slide.source.get("backend") and source.info.fingerprint != known:
        source.close()
        raise InputError(
            f"{address} is not the file that {slide.path} was made of. Name the folder of the slides to see it all the same: --slides."
        )
    return source


def _is_below(address: str, root: str) -> bool:
    """Whether an address lies in a folder or below a URL, links and dots followed."""
    if "://" in root or "://" in address:
        return address.startswith(f"{root.rstrip('/')}/") and "/../" not in address
    return Path(address).resolve().is_relative_to(Path(root).resolve())


def _is_own(slide: Slide) -> bool:
    """Whether a store is a local folder of this user's."""
    if slide.folder.local is None:
        return False
    try:
        return all(path.stat().st_uid == os.geteuid() for path in (slide.folder.local, slide.folder.local / "zarr.json"))
    except OSError:
        return False
