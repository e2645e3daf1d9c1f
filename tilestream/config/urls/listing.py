"""Which objects a pattern or a prefix in a bucket means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

from tilestream.config.same_slide import NEVER_DICOM
from tilestream.config.urls.objects import answers_anyone, missing_credentials, open_store, scheme_of, server_words
from tilestream.errors import ConfigError, OutageError, load_needed

MAGIC = re.compile(r"[*?[]")
PATIENCE: dict[str, Any] = {"retry_config": {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}}


def list_urls(entry: str) -> list[str]:
    """The objects that an entry of `slides` means, sorted: the URL itself, what matches its pattern, or the slides right below a prefix that ends in a slash.

    A prefix of DICOM files and no other slides is one slide itself.

    A Zarr store counts as one object; nothing is looked for inside of it.

    Raises
    ------
    ConfigError
        Nothing matches, the server gives no lists, or access is refused.
    OutageError
        The server does not answer.
    """
    scheme = scheme_of(entry)
    web = scheme in ("http", "https")
    path = entry.partition("://")[2]
    if web:
        path = path.partition("?")[0]
    below = path.endswith("/") and ".zarr" not in path
    if not below and not re.search(r"\*" if web else MAGIC, path):
        return [entry]
    if web:
        raise ConfigError(
            f"slides: {entry}: web servers give no lists of files that could be relied upon. Write the URLs into the config or into a CSV with the column path."
        )
    found = sorted(_matches(scheme, path, below=below))
    if below and not found and any(_is_dicom(url) for url in _matches(scheme, path, below=False)):
        return [entry.rstrip("/")]
    together = Counter(url.rpartition("/")[0] for url in found if _is_dicom(url))
    if together and (most := together.most_common(1)[0])[1] > 1:
        raise ConfigError(
            f"slides: {entry!r} means {most[1]} DICOM files right below {most[0]}, which are one slide where they are one series. "
            f"Name the series by its prefix, {most[0]}/, or by one of its files."
        )
    if not found:
        raise ConfigError(
            f"slides: nothing matches {entry!r}. Check the bucket, and the pattern: `*` ends at a slash, `**` does not."
            if not below
            else f"slides: right below {entry!r} lies no object that is called as a slide is (.svs, .tiff, .ndpi, .zarr ...). Give a pattern, e.g. {entry}**/*.svs."
        )
    return found


def _matches(scheme: str, path: str, *, below: bool) -> Iterator[str]:
    parts = path.split("/")
    first = next((number for number, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    if first == 0:
        raise ConfigError(f"slides: {scheme}://{path}: the bucket itself cannot be a pattern. Name it.")
    base = f"{scheme}://{'/'.join(parts[:first])}"
    exceptions = load_needed(f"slides: listing {base}", "s3", "obstore", "obstore.exceptions")[1]
    lacking = missing_credentials(base)
    try:
        store = open_store(base, **PATIENCE)
    except exceptions.BaseError as error:
        raise ConfigError(f"slides: {base} cannot be opened: {server_words(error)}. {lacking or 'Check the environment.'}") from None
    try:
        for name in _walk(store, "", parts[first:]):
            if not below or _is_slide(name):
                yield f"{base}/{name}"
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, FileNotFoundError) as error:
        raise ConfigError(
            f"slides: {base} cannot be listed: {server_words(error)}. Credentials are taken from the environment, such as AWS_ACCESS_KEY_ID."
        ) from None
    except exceptions.BaseError as error:
        if lacking and answers_anyone(f"{base}/"):
            raise ConfigError(f"slides: {base} cannot be listed: access is refused. {lacking}") from None
        raise OutageError(
            f"slides: {base} cannot be listed: {server_words(error)}. {lacking or 'Check the URL and the connection.'}"
        ) from None


def _walk(store: Any, prefix: str, parts: list[str]) -> Iterator[str]:
    """Names of objects and Zarr stores below a prefix that match the parts of a pattern; "" as the last part matches all."""
    import obstore

    part, rest = parts[0], parts[1:]
    if not MAGIC.search(part) and part and rest:
        yield from _walk(store, f"{prefix}{part}/", rest)
        return
    listed = obstore.list_with_delimiter(store, prefix.rstrip("/") or None)
    objects = [str(entry["path"]) for entry in listed["objects"]]
    folders = [str(name).rstrip("/") for name in listed["common_prefixes"]]
    stores = [name for name in folders if name.lower().endswith(".zarr")]
    if part == "**":
        yield from _walk(store, prefix, rest or ["*"])
        for folder in folders:
            if folder not in stores:
                yield from _walk(store, f"{folder}/", parts)
    elif rest:
        for folder in folders:
            if _fits(folder, part) and folder not in stores:
                yield from _walk(store, f"{folder}/", rest)
    else:
        yield from (name for name in (*objects, *stores) if _fits(name, part or "*"))


def _fits(name: str, pattern: str) -> bool:
    """Whether the last part of a name matches; hidden ones only where the pattern says so."""
    own = name.rpartition("/")[2]
    return fnmatchcase(own, pattern) and (not own.startswith(".") or pattern.startswith("."))


def _is_dicom(url: str) -> bool:
    return url.lower().endswith(".dcm")


def _is_slide(name: str) -> bool:
    own = name.rpartition("/")[2].lower()
    return f".{own.rpartition('.')[2]}" in NEVER_DICOM
