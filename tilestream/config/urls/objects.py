"""Objects by URL, with credentials and endpoints from the environment alone."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, urlsplit

STORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https", "file", "memory"})
"""URL schemes that obstore opens."""

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
"""Variables by which obstore is told of a server other than the provider's own; one within reach of the machine is often plain http."""


def scheme_of(address: str) -> str:
    """The scheme of a URL in small letters; "" of a local path."""
    return address.partition("://")[0].lower() if "://" in address else ""


def is_url(address: str) -> bool:
    """Whether an address is that of an object, of whatever store."""
    return scheme_of(address) in STORE_SCHEMES


def open_store(url: str, **options: Any) -> Any:
    """Obstore's store below a URL. Nothing is asked of the server yet.

    Raises
    ------
    ModuleNotFoundError
        Obstore is not installed.
    obstore.exceptions.BaseError
        The URL names nothing that obstore opens.
    """
    from obstore.store import from_url

    plain = url.startswith("http:") or any(os.environ.get(name, "").startswith("http:") for name in ENDPOINTS)
    if plain:
        options["client_options"] = {**options.get("client_options", {}), "allow_http": True}
    if scheme_of(url) in ("file", "memory"):  # nothing to wait for
        options = {}
    return from_url(url, **options)


def open_object(address: str, **options: Any) -> tuple[Any, str]:
    """Obstore's store that holds an object, and the object's key in it; of a web server the URL as it is, signed or not, and the key ""."""
    if scheme_of(address) in ("http", "https"):
        from obstore.store import HTTPStore

        plain = {"allow_http": True} if address.startswith("http:") else {}
        return HTTPStore.from_url(address, **{**options, "client_options": {**options.get("client_options", {}), **plain}}), ""
    above, key = split_key(address)
    return open_store(above, **options), key


def split_key(address: str) -> tuple[str, str]:
    """A URL's part down to its last slash, as a URL, and the name behind it, as it is."""
    scheme, _, rest = address.partition("://")
    place, _, name = rest.rpartition("/")
    return f"{scheme}://{quote(place, safe='/:@[]')}", name


def path_of(address: str) -> str:
    """The path in a URL, without the query and the fragment of a web address."""
    return urlsplit(address).path if scheme_of(address) in ("http", "https") else address.partition("://")[2].partition("/")[2]


def server_words(error: Exception) -> str:
    """A server's own words, else the first line of an error: the rest is debug output by the page."""
    said = re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)", str(error))
    return f"{said[2]} ({said[1]})" if said else str(error).partition("\n")[0]
