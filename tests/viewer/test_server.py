"""The viewer's server: what it answers and what it refuses."""

import asyncio
import io
import os
import signal
import threading
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from tornado.httpclient import AsyncHTTPClient

from tests.support.viewing import ask, files, running
from tilestream.cli import main
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.server import Viewer
from tilestream.viewer.web import handlers


def test_the_server_answers_by_number_and_for_its_host_alone(output):
    before = files(output)
    answers = ask(
        output,
        [
            ("/", {}), ("/tiles/0/0/0/0.jpg", {}), ("/crops/1/0.jpg", {}), ("/", {"Host": "localhost"}),
            ("/", {"Host": "evil.example"}), ("/tiles/0/0/0/0.jpg", {"Host": "evil.example:80"}), ("/", {"Host": "127.0.0.1.evil.example"}),
            ("/tiles/0/0/0/0.jpg", {"Origin": "http://evil.example"}), ("/client/main.js", {"Host": "evil.example"}),
            ("/tiles/9/0/0/0.jpg", {}), ("/crops/0/999999.jpg", {}), ("/tiles/0/0/0/..%2f..%2fa.tif", {}), ("/crops/0/../../run.json", {}),
            ("/run.json", {}), ("/client/../../../../etc/passwd", {}), ("/client/%2e%2e/server.py", {}), ("//etc/passwd", {}),
            ("/client/__init__.py", {}), ("/slides/0/layer?key=no", {}), ("/slides/9.json", {}), ("/slides/0/layer?key=similarity&of=0&tile=-1", {}),
            ("/slides/0/regions", {}),
        ],
    )  # fmt: skip
    codes = [code for code, _ in answers]
    assert codes[:4] == [200, 200, 200, 200]
    assert codes[4:9] == [403] * 5
    assert all(code in (400, 403, 404) for code in codes[9:])
    assert b"http://cdn" not in answers[0][1]
    assert b"https://" not in answers[0][1]
    assert Image.open(io.BytesIO(answers[1][1])).size == (388, 288)  # of 3,100 x 2,300 px, an eighth
    assert files(output) == before


def test_the_command_ends_quietly_and_refuses_what_it_cannot_do(output, tmp_path, capsys):
    for arguments, code, words in (
        ([str(tmp_path)], 3, "no output of tilestream here"),
        ([str(output), "--slide", "zz"], 2, "--slide: zz is in none"),
        ([str(output), "--host", "0.0.0.0"], 2, "every address"),
        ([str(output), "--annotations", str(output / "run.json")], 2, "run.json is a file. Name the folder"),
        ([str(output), "--host", "host.invalid"], 2, "cannot be listened on"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["view", *arguments, "--no-browser"])
        assert ended.value.code == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_it_with_0_and_torch_is_never_loaded(output, number):
    with running(output, number=number) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()


def test_a_hang_up_that_is_ignored_does_not_end_it(output):
    with running(output, through=["bash", "-c", 'trap "" HUP; exec "$@"', "bash"]) as (address, process):
        os.kill(process.pid, signal.SIGHUP)
        assert urllib.request.urlopen(address).status == 200


def test_what_nobody_waits_for_any_more_is_not_begun(output, monkeypatch):
    begun, begins, go, came, left = [], threading.Event(), threading.Event(), asyncio.Event(), asyncio.Event()
    places, close = handlers.places_told, handlers.Handler.on_connection_close

    def slow(slide):
        begun.append(slide.id)
        begins.set()
        assert go.wait(60)
        return places(slide)

    def closed(handler):
        close(handler)
        left.set()

    monkeypatch.setattr(handlers, "places_told", slow)
    monkeypatch.setattr(handlers.Places, "prepare", lambda handler: came.set() if "/1/" in handler.request.path else None)
    monkeypatch.setattr(handlers.Handler, "on_connection_close", closed)

    async def talk():
        viewer = Viewer(Catalogue([str(output)]))
        try:
            first = AsyncHTTPClient().fetch(f"{viewer.address}slides/0/places")
            await asyncio.to_thread(begins.wait, 60)
            host, port = viewer.address.removeprefix("http://").rstrip("/").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /slides/1/places HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await asyncio.wait_for(came.wait(), 60)
            writer.close()
            await asyncio.wait_for(left.wait(), 60)
            go.set()
            assert (await first).code == 200
            assert (await AsyncHTTPClient().fetch(f"{viewer.address}slides/0/places")).code == 200
        finally:
            go.set()
            viewer.stop()

    asyncio.run(talk())
    assert begun == ["a", "a"]
