"""How a web server answers where its answer is none that ranges can be read from: asked once more, plainly, for its status, headers and first bytes."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from typing import Any

from tilestream.config.urls.objects import refusal_words, scheme_of, web_request
from tilestream.errors import InputError, without_credentials

PATIENCE = 10.0
"""Seconds."""

HEAD = 1024
"""Bytes of an answer that are looked at."""

CHECK = "Check the URL; a signature in it may have expired."
NETWORK = "Log in to the network, or name the proxy with user and password in HTTPS_PROXY."
FOLLOW = "Name where it redirects to."
BROWSER = "Download it by other means, and name the copy."
FINAL = {
    **dict.fromkeys((300, 301, 302, 303, 304, 305, 307, 308), FOLLOW),
    **dict.fromkeys((400, 402, 414, 421, 422), CHECK),
    **dict.fromkeys((406, 411, 412, 413, 415, 417, 418, 424, 426, 428, 431, 505, 506, 508, 510), BROWSER),
    **dict.fromkeys((407, 511), NETWORK),
    410: "It is gone for good: name where it lies now, or leave it out.",
    416: BROWSER,
    451: "It is withheld for legal reasons: name another copy, or leave it out.",
    501: BROWSER,
}
"""Statuses that asking again does not change, and the way out (RFC 9110, section 15, and the registry of IANA).

Others may change (408, 409, 423, 425, 429, 500, 502, 503, 504, 507 and what no registry knows) or have errors of their own (401, 403, 404, 405).
"""

NO_RANGES = (416, 501)
"""Of those, what servers say that give no parts of a file, and may give it whole."""


class NoRangesError(InputError):
    """The server gives files whole only."""


def no_ranges(address: str) -> NoRangesError:
    """The error of a server that gives files whole only."""
    return NoRangesError(
        f"{address}: the server does not give parts of a file (HTTP range requests), without which a slide cannot be read where it lies. "
        "Copy it ahead: set source.stage to a folder."
    )


def empty(address: str) -> InputError:
    """The error of an object without bytes."""
    return InputError(f"{address}: the object is empty (0 bytes). Copy it again from its origin.")


def is_page(head: bytes) -> bool:
    """Whether what begins so is a web page."""
    return (
        re.match(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", head, re.IGNORECASE | re.DOTALL)
        is not None
    )


def no_image(address: str) -> InputError:
    """The error of a page that came in the place of a file."""
    asks = refusal_words(address) if scheme_of(address) in ("http", "https") else "Check the URL."
    return InputError(
        f"{without_credentials(address)}: a web page (HTML) came, and not a file, as where a login is asked for or a share is shown. {asks} "
        "Or download it with a browser, and name the copy."
    )


def unfit_answer(address: str) -> InputError | None:
    """What is the matter with how a web server gives a file, and the way out; None where nothing is, or it does not answer at all.

    It is asked only where reading failed before anything came: a server that does not say how much it sends fails as one that is gone.
    """
    if scheme_of(address) not in ("http", "https"):
        return None
    try:
        with _ask(address, {"Range": "bytes=0-0"}) as answer:
            if is_page(answer.read(HEAD)) or _is_packed_page(answer.headers):
                return no_image(address)
            problem = _problem(int(answer.status), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return _refusal(address, error.code)
    except (OSError, http.client.HTTPException, ValueError):  # URLError is an OSError
        return None
    if not problem:
        return None
    return InputError(
        f"{without_credentials(address)}: the server {problem}, so it cannot be read where it lies. Download it, and name the copy."
    )


def _ask(address: str, headers: dict[str, str]) -> Any:
    """A server's answer, followed to where it redirects."""
    url, access = web_request(address)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})  # noqa: S310  # http or https
    for name, value in access.items():
        request.add_unredirected_header(name, value)
    return urllib.request.urlopen(request, timeout=PATIENCE)  # noqa: S310


def _refusal(address: str, status: int) -> InputError | None:
    """What a status says that asking again does not change; None of others."""
    if status not in FINAL:
        return None
    if status in NO_RANGES:
        with suppress(OSError, http.client.HTTPException, ValueError), _ask(address, {}) as answer:
            if is_page(answer.read(HEAD)) or _is_packed_page(answer.headers):
                return no_image(address)
            return empty(address) if answer.headers.get("Content-Length") == "0" else no_ranges(address)
    phrase = HTTPStatus(status).phrase
    return InputError(f"{without_credentials(address)}: the server answers {status} ({phrase}), and would again. {FINAL[status]}")


def _is_packed_page(headers: Message) -> bool:
    """Whether an answer that cannot be looked into says that it is a page."""
    return _coding(headers) != "identity" and headers.get_content_type() == "text/html"


def _coding(headers: Message) -> str:
    return (headers.get("Content-Encoding") or "identity").strip().lower()


def _problem(status: int, headers: Message) -> str:
    if (coding := _coding(headers)) != "identity":
        return f"compresses the file on its way (Content-Encoding: {coding}), and gives no plain parts of it"
    if status == 206 and not re.fullmatch(r"bytes \d+-\d+/\d+", (said := headers.get("Content-Range") or "").strip()):
        return f"does not say how long the file is (Content-Range: {said or 'none'})"
    if not (headers.get("Content-Length") or "").strip().isdecimal():
        return "does not say how much it sends (no Content-Length)"
    return ""
