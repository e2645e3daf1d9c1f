"""Objects by URL, with credentials and endpoints from the environment alone."""

from __future__ import annotations

import base64
import os
import re
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tilestream.errors import InputError, OutageError

STORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https", "file", "memory"})
"""URL schemes that obstore opens."""

ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
"""Variables by which obstore is told of a server other than the provider's own; one within reach of the machine is often plain http."""

_AWS = (
    ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (~/.aws is not read)",
    "AWS_SKIP_SIGNATURE",
)
_GOOGLE = (
    ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SKIP_SIGNATURE",
)
_AZURE = (
    ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_SKIP_SIGNATURE",
)
ACCESS = {"s3": _AWS, "s3a": _AWS, "gs": _GOOGLE, "az": _AZURE, "adl": _AZURE, "azure": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
"""For each scheme the variables that bring credentials, how they are named to people, and the one that asks for none."""


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
    InputError
        It is no URL.
    ModuleNotFoundError
        Obstore is not installed.
    obstore.exceptions.BaseError
        The URL names nothing that obstore opens.
    """
    from obstore.store import from_url

    if any(os.environ.get(name, "").startswith("http:") for name in ENDPOINTS):
        options = _with_client(options, allow_http=True)
    if scheme_of(url) in ("http", "https"):
        url, options = _web(url, options)
    if scheme_of(url) in ("file", "memory"):  # nothing to wait for
        options = {}
    try:
        return from_url(url, **options)
    except ValueError as error:
        raise _no_url(url, error) from error


def open_object(address: str, **options: Any) -> tuple[Any, str]:
    """Obstore's store that holds an object, and the object's key in it; of a web server the URL as it is, signed or not, and the key ""."""
    if scheme_of(address) in ("http", "https"):
        from obstore.store import HTTPStore

        address, options = _web(address, options)
        try:
            return HTTPStore.from_url(address, **options), ""
        except ValueError as error:
            raise _no_url(address, error) from error
    above, key = split_key(address)
    return open_store(above, **options), key


def _web(address: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A web address without the user and password in it, and options of a client that sends them: obstore leaves them out."""
    if _split(address).scheme == "http":
        options = _with_client(options, allow_http=True)
    address, headers = web_request(address)
    return address, _with_client(options, default_headers=headers) if headers else options


def web_request(address: str) -> tuple[str, dict[str, str]]:
    """A web address without the user and password in it, and the headers that send them (RFC 7617)."""
    parts = _split(address)
    access, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, {}
    user, _, password = access.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return parts._replace(netloc=host).geturl(), {"authorization": f"Basic {token}"}


def _with_client(options: dict[str, Any], **choices: Any) -> dict[str, Any]:
    return {**options, "client_options": {**options.get("client_options", {}), **choices}}


def _split(address: str) -> SplitResult:
    """The parts of a web address. Raises InputError where it has none."""
    try:
        parts = urlsplit(address)
        if parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError as error:
        raise _no_url(address, error) from error
    raise _no_url(address, ValueError("it names no host"))


def _no_url(address: str, error: ValueError) -> InputError:
    return InputError(f"{address}: is no address: {str(error).partition(chr(10))[0]}. Write it as https://host/folder/slide.svs.")


def refusal_words(address: str) -> str:
    """What to do where a server refuses access to an address."""
    if scheme_of(address) in ("http", "https"):
        return "What a web server asks for stands in the URL: a signature, which may have expired, or user, colon, password and @ before the host."
    return "Credentials are taken from the environment, such as AWS_ACCESS_KEY_ID; for public buckets set AWS_SKIP_SIGNATURE=true."


def missing_credentials(address: str) -> str:
    """What to set where the environment holds no credentials for an address; "" where it holds some, or needs none."""
    brought, named, public = ACCESS.get(scheme_of(address), ((), "", ""))
    if not named or any(os.environ.get(name) for name in (*brought, public)):
        return ""
    return f"The environment holds no credentials: set {named}, or for what is public {public}=true."


def answers_anyone(address: str) -> bool:
    """Whether storage answers who has no credentials, be it with a refusal: then it is there, and what lacks are those."""
    import obstore
    from obstore import exceptions

    try:
        obstore.head(*open_object(address, skip_signature=True, client_options={"timeout": "10s"}, retry_config={"max_retries": 0}))
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, FileNotFoundError):
        return True
    except exceptions.BaseError:
        return False
    return True


def lost_or_refused(lost: OutageError, address: str, error: BaseException) -> OutageError | InputError:
    """An outage that is none, as `error` came of a refusal, or may be none, where the environment holds no credentials: with the words that say so."""
    refused = _refusal(error) if is_url(address) else None
    lacking = missing_credentials(address)
    if refused is not None and not lacking:
        return InputError(f"{address}: access is refused ({server_words(refused)}). {refusal_words(address)}")
    if not lacking:
        return lost
    if answers_anyone(address):
        return InputError(f"{address}: access is refused. {lacking}")
    return OutageError(f"{str(lost).rstrip('. ')}. {lacking}")


def _refusal(error: BaseException | None) -> Exception | None:
    """What a server said that refuses access, where an error came of that."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    while error is not None:
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return error
        error = error.__cause__
    return None


def split_key(address: str) -> tuple[str, str]:
    """A URL's part down to its last slash, as a URL, and the name behind it, as it is."""
    scheme, _, rest = address.partition("://")
    place, _, name = rest.rpartition("/")
    return f"{scheme}://{quote(place, safe='/:@[]')}", name


def path_of(address: str) -> str:
    """The path in a URL, without the query and the fragment of a web address."""
    return _split(address).path if scheme_of(address) in ("http", "https") else address.partition("://")[2].partition("/")[2]


def beside_url(address: str, suffix: str) -> str:
    """The address of what lies beside an object under its name and a suffix; what is signed stays behind it, though it is for the object alone."""
    return url_with_path(address, path_of(address) + suffix)


def url_with_path(address: str, path: str) -> str:
    """The same address with another path, in the form of `path_of`."""
    if scheme_of(address) in ("http", "https"):
        return _split(address)._replace(path=path).geturl()
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{path}"


def server_words(error: Exception) -> str:
    """A server's own words, else the first line of an error: the rest is debug output by the page."""
    said = re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)", str(error))
    return f"{said[2]} ({said[1]})" if said else str(error).partition("\n")[0]
