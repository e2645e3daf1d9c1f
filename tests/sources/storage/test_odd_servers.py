"""Web servers whose answers cannot be read in parts: what is the matter is said at once, with the way out, and never as an outage."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.support.quiet_server import QuietHandler, QuietServer, in_thread
from tests.support.rasters import PICTURE, write_raster
from tilestream.errors import InputError, OutageError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.storage import fetching


class OddServer(QuietServer):
    """Serves the files of a folder: `ranges`, `length` and `total` say whether it gives parts, and says how long an answer and the file are."""

    def __init__(self, folder: Path, **ways: str | bool) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.ways: dict[str, str | bool] = {
            "ranges": True,
            "length": True,
            "total": True,
            "coding": "",
            "head": True,
            "to": "",
            "only": "",
            **ways,
        }
        self.asked: list[tuple[str, str]] = []
        """Method, and what stood in Authorization."""


class _Handler(QuietHandler):
    server: OddServer

    def do_HEAD(self) -> None:
        self._give(body=False)

    def do_GET(self) -> None:
        self._give(body=True)

    def _give(self, *, body: bool) -> None:
        ways = self.server.ways
        self.server.asked.append((self.command, self.headers.get("Authorization", "")))
        file = self.server.folder / str(ways["only"] or self.path.partition("?")[0].lstrip("/"))
        if ways["to"] or not file.is_file() or not (body or ways["head"]):
            self.send_response(302 if ways["to"] else 404 if ways["head"] or body else 405)
            self.send_header("Location", str(ways["to"]))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and ways["ranges"]:
            first, last, total = int(asked[1]), min(int(asked[2]), len(data) - 1), len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total if ways['total'] else '*'}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if ways["coding"]:
            self.send_header("Content-Encoding", str(ways["coding"]))
        if ways["length"]:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if body else b"")
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if body:
            for part in (data[at : at + 4096] for at in range(0, len(data), 4096)):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(folder: Path, **ways: str | bool) -> Iterator[OddServer]:
    server = OddServer(folder, **ways)
    with in_thread(server):
        yield server


ODD = {
    "parts without length": ({"length": False}, "the server does not say how much it sends (no Content-Length)"),
    "whole without length": ({"length": False, "ranges": False}, "the server does not say how much it sends (no Content-Length)"),
    "parts of an unknown whole": ({"total": False}, "the server does not say how long the file is (Content-Range: bytes 0-0/*)"),
    "compressed": ({"coding": "gzip", "ranges": False}, "the server compresses the file on its way (Content-Encoding: gzip)"),
}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_an_answer_that_cannot_be_read_is_told_at_once_with_the_way_out(tmp_path: Path, name: str, staged: bool) -> None:
    ways, words = ODD[name]
    write_raster(tmp_path / "a.tif", PICTURE)
    options = SourceOptions(stage=str(tmp_path / "stage"), stage_limit=10**9) if staged else SourceOptions()
    with serving(tmp_path, **ways) as server, pytest.raises(InputError, match=re.escape(words)) as raised:
        open_source(server.url("a.tif?sig=hush", access="me:secret@"), options)
    assert "Download it, and name the copy." in str(raised.value)
    assert "hush" not in str(raised.value)
    assert "secret" not in str(raised.value)
    assert len(server.asked) == 2  # the answer, and once more for what is the matter with it
    assert {access for _, access in server.asked} == {f"Basic {base64.b64encode(b'me:secret').decode()}"}


def test_a_zarr_whose_metadata_come_without_their_length_is_told_too(tmp_path: Path) -> None:
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx")]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=np.moveaxis(PICTURE, -1, 0), chunks=(3, 64, 64))
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
    }
    with serving(tmp_path) as server, open_source(server.url("a.zarr"), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, *PICTURE.shape[:2])), PICTURE)
    with (
        serving(tmp_path, length=False) as server,
        pytest.raises(InputError, match=r"zarr.json\?sig=\*\*\*: the server does not say how much"),
    ):
        open_source(server.url("a.zarr?sig=hush"), SourceOptions())


def test_a_server_that_gives_wholes_only_and_refuses_head_is_staged(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", PICTURE)
    options = SourceOptions(stage=str(tmp_path / "stage"), stage_limit=10**9)
    with serving(tmp_path, ranges=False, head=False) as server:
        with open_source(server.url("a.tif"), options) as source:
            np.testing.assert_array_equal(source.read_region(0, Region(0, 0, *PICTURE.shape[:2])), PICTURE)
        with pytest.raises(InputError, match=r"does not give parts of a file.*set source.stage to a folder"):
            open_source(server.url("a.tif"), SourceOptions())


def test_user_and_password_stay_with_the_host_that_they_are_for(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", PICTURE)
    with serving(tmp_path, length=False) as other, serving(tmp_path, to=other.url("a.tif").replace("127.0.0.1", "localhost")) as server:
        with pytest.raises(InputError, match="does not say how much it sends"):
            open_source(server.url("a.tif", access="me:secret@"), SourceOptions())
        assert {access for _, access in other.asked} == {""}


def test_a_server_that_only_fails_is_an_outage_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))
    with serving(tmp_path) as server:
        address = server.url("a.tif")
    with pytest.raises(OutageError, match="its storage does not answer"):
        open_source(address, SourceOptions())


@pytest.mark.parametrize("staged", [False, True])
def test_a_server_that_gives_one_file_whatever_it_is_asked_for_gives_no_mask(tmp_path: Path, staged: bool) -> None:
    picture = PICTURE.copy()
    picture[20:60, 30:90] = 0  # what such a mask would hide
    write_raster(tmp_path / "a.tif", picture)
    options = SourceOptions(stage=str(tmp_path / "stage"), stage_limit=10**9) if staged else SourceOptions()
    with serving(tmp_path, only="a.tif") as server, open_source(server.url("download?id=7"), options) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, *PICTURE.shape[:2])), picture)
