"""What the environment makes of a URL: what a server is asked for, as whom, and what is said where credentials lack."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, InputError, OutageError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.storage import fetching
from tilestream.sources.storage.fetching import RangeFetcher

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush"}
ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "lab"}
SIGNED = "AWS4-HMAC-SHA256 Credential=me/"
TABLE = {
    "s3": ("s3://b/x/a b.svs", {"AWS_ENDPOINT_URL": "", **KEYS}, "/b/x/a%20b.svs", (SIGNED, "/us-east-1/s3/")),
    "s3 region": ("s3://b/a.svs", {"AWS_ENDPOINT_URL": "", "AWS_REGION": "eu-west-1", **KEYS}, "/b/a.svs", (SIGNED, "/eu-west-1/s3/")),
    "s3 default region": ("s3://b/a.svs", {"AWS_ENDPOINT_URL": "", "AWS_DEFAULT_REGION": "eu-west-2", **KEYS}, "/b/a.svs", (SIGNED, "/eu-west-2/s3/")),
    "s3 token": ("s3://b/a.svs", {"AWS_ENDPOINT_URL": "", "AWS_SESSION_TOKEN": "t", **KEYS}, "/b/a.svs", (SIGNED, "x-amz-security-token")),
    "s3 public": ("s3://b/a.svs", {"AWS_ENDPOINT_URL": "", "AWS_SKIP_SIGNATURE": "true"}, "/b/a.svs", ()),
    "s3 endpoint of its own": ("s3://b/a.svs", {"AWS_ENDPOINT_URL_S3": "", "AWS_SKIP_SIGNATURE": "true"}, "/b/a.svs", ()),
    "s3a": ("s3a://b/a.svs", {"AWS_ENDPOINT": "", **KEYS}, "/b/a.svs", (SIGNED,)),
    "gs public": ("gs://b/x/a b.svs", {"GOOGLE_BASE_URL": "", "GOOGLE_SKIP_SIGNATURE": "true"}, "/b/x%2Fa%20b%2Esvs", ()),
    "az": ("az://c/x/a.svs", {"AZURE_STORAGE_ENDPOINT": "", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5", **ACCOUNT}, "/c/x/a.svs", ("SharedKey lab:",)),
    "az token": ("az://c/a.svs", {"AZURE_ENDPOINT": "", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=2", **ACCOUNT}, "/c/a.svs?sv=1&sig=2", ()),
    "az public": ("az://c/a.svs", {"AZURE_STORAGE_ENDPOINT": "", "AZURE_SKIP_SIGNATURE": "true", **ACCOUNT}, "/c/a.svs", ()),
    "abfss": ("abfss://c@lab.dfs.core.windows.net/a.svs", {"AZURE_STORAGE_ENDPOINT": "", "AZURE_SKIP_SIGNATURE": "true"}, "/c/a.svs", ()),
    "https": ("URL/a b.svs?sig=1", {}, "/a%20b.svs?sig=1", ()),
}  # fmt: skip
"""The URL, the environment ("" is the server's address), the path that is asked for, and what stands in the signature, which is not there where nothing stands."""


@dataclass
class Asked:
    """A server that gives four bytes to everyone, or refuses everyone, and remembers what it was asked."""

    url: str = ""
    status: int = 206
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and signature of each request."""


@contextmanager
def _answering() -> Iterator[Asked]:
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.requests.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(asked.status)
            for name, value in {"Content-Range": "bytes 0-3/4", "ETag": '"x"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "4" if asked.status == 206 else "0")
            self.end_headers()
            if asked.status == 206:
                self.wfile.write(b"data")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    asked.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(fetching, "PAUSES", ())
    with _answering() as server:
        yield server


@pytest.mark.parametrize("case", TABLE)
def test_the_environment_says_who_asks_and_where(asked: Asked, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    url, environment, path, signature = TABLE[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value or asked.url)
    assert RangeFetcher(url.replace("URL", asked.url)).fetch(0, 4) == b"data"
    ((found, signed),) = asked.requests
    assert found == path
    assert all(part in signed for part in signature)
    assert bool(signed) == bool(signature)


METADATA = {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": ""}
"""No machine gives credentials at that port."""


def test_without_credentials_what_lacks_is_said(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in METADATA.items():
        monkeypatch.setenv(name, value or asked.url)
    asked.status = 403
    words = (
        r"s3://b/.*access is refused.* set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY .*, or for what is public AWS_SKIP_SIGNATURE=true"
    )
    for name in ("a.svs", "a.zarr"):
        with pytest.raises(InputError, match=words):
            open_source(f"s3://b/{name}", SourceOptions())
    with pytest.raises(InputError, match=r"az://c/a\.svs: .*Account must be specified.* set AZURE_STORAGE_ACCOUNT_NAME"):
        open_source("az://c/a.svs", SourceOptions())
    with pytest.raises(ConfigError, match=r"slides: az://c cannot be opened: .*AZURE_STORAGE_ACCOUNT_NAME"):
        list_slides(["az://c/*.svs"])


def test_a_server_that_answers_nobody_is_an_outage_that_names_what_may_lack(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METADATA:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        OutageError, match=r"a\.svs: its storage does not answer: .*The environment holds no credentials: set AWS_ACCESS_KEY_ID"
    ):
        open_source("s3://b/a.svs", SourceOptions())


@pytest.mark.parametrize(
    "address",
    ["http://[::1/a.svs", "https://u:hush@[x/a.svs", "http://host:99999/a.svs", "http://host:x/a.svs?sig=hush", "http:///a.svs", "https://", "s3://bu[ck/a.svs", "s3://b:99999/a.svs"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_what_it_holds_of_secrets(address: str) -> None:
    with pytest.raises(InputError, match=r"is no address: .*Write it as https://host|cannot be opened") as refused:
        open_source(address, SourceOptions())
    assert "hush" not in str(refused.value)


def test_user_and_password_of_a_web_address_go_to_its_server_alone() -> None:
    with _answering() as asked:
        host = asked.url.removeprefix("http://")
        RangeFetcher(f"http://me:h%40sh%20%3A@{host}/a.svs?x=1").fetch(0, 4)
        RangeFetcher(f"http://{host}/b.svs").fetch(0, 4)
        token = base64.b64encode(b"me:h@sh :").decode()
        assert asked.requests == [("/a.svs?x=1", f"Basic {token}"), ("/b.svs", "")]
        asked.status = 401
        with pytest.raises(
            InputError, match=r"http://\*\*\*@.*: access is refused .*user, colon, password and @ before the host"
        ) as refused:
            RangeFetcher(f"http://me:hush@{host}/a.svs").fetch(0, 4)
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("name", ["a.svs", "a.zarr", "b.zarr/0"])
@pytest.mark.parametrize("base", ["URL", "s3://b"])
def test_a_refusal_is_no_outage_whatever_lies_there(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, base: str, name: str, status: int
) -> None:
    for key, value in {**KEYS, "AWS_ENDPOINT_URL": asked.url}.items():
        monkeypatch.setenv(key, value)
    asked.status = status
    words = "stands in the URL" if base == "URL" else "Credentials are taken from the environment"
    with pytest.raises(InputError, match=rf"{name}: access is refused .*{words}"):
        open_source(f"{base.replace('URL', asked.url)}/{name}", SourceOptions())
