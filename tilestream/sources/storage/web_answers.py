"""How a web server answers where its answer is none that ranges can be read from: asked once more, plainly, for what its headers say."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from email.message import Message

from tilestream.config.urls.objects import scheme_of, web_request
from tilestream.errors import without_credentials

PATIENCE = 10.0
"""Seconds."""


def unfit_answer(address: str) -> str:
    """What is the matter with how a web server gives a file, and the way out, as sentences; "" where nothing is, or it does not answer at all.

    It is asked only where reading failed before anything came: a server that does not say how much it sends fails as one that is gone.
    """
    if scheme_of(address) not in ("http", "https"):
        return ""
    url, access = web_request(address)
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"})  # noqa: S310  # http or https
    for name, value in access.items():
        request.add_unredirected_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            problem = _problem(int(answer.status), answer.headers)
    except (OSError, http.client.HTTPException, ValueError):  # URLError is an OSError
        return ""
    if not problem:
        return ""
    return f"{without_credentials(address)}: the server {problem}, so it cannot be read where it lies. Download it, and name the copy."


def _problem(status: int, headers: Message) -> str:
    coding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if coding != "identity":
        return f"compresses the file on its way (Content-Encoding: {coding}), and gives no plain parts of it"
    if status == 206 and not re.fullmatch(r"bytes \d+-\d+/\d+", (said := headers.get("Content-Range") or "").strip()):
        return f"does not say how long the file is (Content-Range: {said or 'none'})"
    if not (headers.get("Content-Length") or "").strip().isdecimal():
        return "does not say how much it sends (no Content-Length)"
    return ""
