"""What a server's status means for a file that is opened: those that asking again does not change end at once, with the way out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.quiet_server import QuietHandler, QuietServer, in_thread
from tests.support.rasters import PICTURE, write_raster
from tilestream.errors import InputError, OutageError, TilestreamError
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.storage import fetching

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form></form></body></html>"


class StatusServer(QuietServer):
    """Answers with one status and body; `whole` says with which where no part is asked for."""

    def __init__(self, status: int, body: bytes = b"", kind: str = "text/plain", *, whole: int = 0, chunked: bool = False) -> None:
        super().__init__(_Handler)
        self.status, self.body, self.kind, self.whole, self.chunked = status, body, kind, whole or status, chunked
        self.asked = 0


class _Handler(QuietHandler):
    server: StatusServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        told = self.server
        told.asked += 1
        self.send_response(told.status if "Range" in self.headers else told.whole)
        self.send_header("Content-Type", told.kind)
        if told.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(told.body), told.body))
            return
        self.send_header("Content-Length", str(len(told.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(told.body)


@contextmanager
def answering(status: int, body: bytes = b"", kind: str = "text/plain", *, whole: int = 0, chunked: bool = False) -> Iterator[StatusServer]:
    server = StatusServer(status, body, kind, whole=whole, chunked=chunked)
    with in_thread(server):
        yield server


LASTING = {
    **dict.fromkeys((300, 301, 302, 303, 307, 308), "Name where it redirects to"),
    **dict.fromkeys((400, 402, 414, 421, 422), "Check the URL"),
    **dict.fromkeys((406, 411, 412, 413, 415, 417, 418, 424, 426, 428, 431, 505, 508, 510), "Download it by other means"),
    **dict.fromkeys((407, 511), "HTTPS_PROXY"),
    410: "gone for good",
    416: "Download it by other means",
    451: "withheld for legal reasons",
    501: "Download it by other means",
}


def options(tmp_path: Path, *, staged: bool) -> SourceOptions:
    return SourceOptions(stage=str(tmp_path / "stage"), stage_limit=10**9) if staged else SourceOptions()


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("status", LASTING)
def test_a_status_that_lasts_ends_at_once_with_the_way_out(tmp_path: Path, status: int, staged: bool) -> None:
    with answering(status) as server:
        with pytest.raises(InputError, match=rf"a\.svs\?sig=\*\*\*: the server answers {status} \(.*{LASTING[status]}") as raised:
            open_source(server.url("a.svs?sig=hush"), options(tmp_path, staged=staged))
        assert "hush" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert server.asked <= 4  # the answer, and once or twice more for what is the matter with it


@pytest.mark.parametrize("status", [408, 409, 423, 425, 429, 500, 502, 503, 504, 507, 520, 599])
def test_a_status_that_may_change_is_waited_for(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.01, 0.01))
    with answering(status) as server:
        with pytest.raises(OutageError, match=f"does not answer: .*{status}"):
            fetching.RangeFetcher(server.url("a.svs")).fetch(0, 4)
        assert server.asked == 4  # three times, and once for what is the matter


@pytest.mark.parametrize("status", [400, 410, 451, 501])
def test_a_zarr_ends_at_once_too(status: int) -> None:
    with answering(status) as server, pytest.raises(InputError, match=rf"the server answers {status} \("):
        open_source(server.url("a.zarr"), SourceOptions())


@pytest.mark.parametrize("status", [416, 501])
def test_a_server_that_refuses_parts_alone_is_one_that_gives_wholes(tmp_path: Path, status: int) -> None:
    data = write_raster(tmp_path / "a.tif", PICTURE).read_bytes()
    with answering(status, data, whole=200) as server:
        with pytest.raises(InputError, match=r"does not give parts of a file.*set source.stage"):
            open_source(server.url("a.tif"), SourceOptions())
        with open_source(server.url("a.tif"), options(tmp_path, staged=True)) as source:
            assert (source.info.size.height, source.info.size.width) == PICTURE.shape[:2]
    with answering(status, whole=200) as server, pytest.raises(InputError, match=r"the object is empty \(0 bytes\)"):
        open_source(server.url("a.tif"), SourceOptions())


PAGES = {
    "plain": (200, PAGE, False),
    "without its length": (200, PAGE, True),
    "behind blanks and a comment": (200, b"\xef\xbb\xbf\n <!-- made by x\n -->\n<HTML lang=en><body>" + b" " * 9999, False),
    "where parts are refused": (416, PAGE, False),
}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_the_place_of_a_slide_is_told_as_one(tmp_path: Path, name: str, staged: bool) -> None:
    status, page, chunked = PAGES[name]
    with (
        answering(status, page, "text/html", whole=200, chunked=chunked) as server,
        pytest.raises(
            InputError, match=r"a\.svs: a web page \(HTML\) came, and not a file.*signature, which may have expired.*with a browser"
        ),
    ):
        open_source(server.url("a.svs"), options(tmp_path, staged=staged))


def test_a_page_that_is_given_in_parts_is_told_as_one(tmp_path: Path) -> None:
    from tests.support.range_server import serving

    (tmp_path / "a.svs").write_bytes(PAGE * 1000)
    with serving(tmp_path) as server, pytest.raises(InputError, match=r"a web page \(HTML\) came, and not a file"):
        open_source(server.url("a.svs"), SourceOptions())


def test_a_slide_of_a_server_that_calls_everything_a_page_is_read(tmp_path: Path) -> None:
    data = write_raster(tmp_path / "a.tif", PICTURE).read_bytes()
    with answering(200, data, "text/html") as server, open_source(server.url("a.tif"), options(tmp_path, staged=True)) as source:
        assert (source.info.size.height, source.info.size.width) == PICTURE.shape[:2]


@pytest.mark.parametrize(("environment", "status"), [({}, 403), ({"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush"}, 403)])
def test_a_file_of_a_mosaic_is_refused_in_the_words_of_a_single_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: int
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetching, "PAUSES", ())
    with answering(status) as server:
        for name, value in {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": server.url(""), **environment}.items():
            monkeypatch.setenv(name, value)
        assets = {"data": {"href": "s3://b/a.tif", "type": "image/tiff"}}
        (tmp_path / "item.json").write_text(json.dumps({"assets": assets}))
        (tmp_path / "list.txt").write_text("s3://b/a.tif\n")
        told = []
        for address in ("s3://b/a.tif", str(tmp_path / "item.json"), f"mosaic://{tmp_path / 'list.txt'}"):
            with pytest.raises(TilestreamError, match=r"s3://b/a\.tif: access is refused.*AWS_SKIP_SIGNATURE=true") as raised:
                open_source(address, SourceOptions())
            assert isinstance(raised.value, InputError)
            told.append(str(raised.value).partition(" in ")[0])
        assert len(set(told)) == 1
