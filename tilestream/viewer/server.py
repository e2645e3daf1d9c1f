"""The server of the page: loopback unless told otherwise, for the hosts it was told, of numbers and never of paths."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from tilestream.errors import ConfigError, TilestreamError
from tilestream.viewer.answers import draw_answer_tile
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.deepzoom import encode_jpeg
from tilestream.viewer.page import make_page

READERS = 4
"""Threads that read pixels."""

CROP_PX = 160
"""Side of a tile in the gallery, px."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("", "0.0.0.0", "::", "*")  # noqa: S104 - to refuse them


class _Refused(RequestHandler):
    """The answer to a request for another host."""

    def prepare(self) -> None:
        self.set_status(403)
        self.finish("This address is not the one that the viewer was started for: see --host.\n")


class _Tornado(BokehTornado):  # type: ignore[misc]
    """Bokeh's application behind a check of Host and Origin: a page elsewhere whose name is made to lead here gets nothing, the websocket included."""

    def __init__(self, apps: dict[str, Application], hosts: frozenset[str], patterns: list[Any]) -> None:
        self._hosts = hosts
        super().__init__(apps, extra_patterns=patterns, extra_websocket_origins=["*"], absolute_url=None)  # `find_handler` is stricter

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """The handler of a request, or the refusal."""
        origin = request.headers.get("Origin")
        if _host_name(request.host) in self._hosts and (origin is None or urlsplit(origin).netloc == request.host):
            return super().find_handler(request, **options)
        return self.get_handler_delegate(request, _Refused)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class _Pixels(RequestHandler):
    """Pictures by numbers: /tiles/<slide>/<level>/<column>/<row>.jpg and /crops/<slide>/<tile>.jpg."""

    kind = "image/jpeg"

    def initialize(self, catalogue: Catalogue, readers: Executor) -> None:
        self.catalogue, self.readers = catalogue, readers

    async def get(self, *numbers: str) -> None:
        """Answer with JPEG; 404 for what no slide has."""
        first, *rest = (int(number) for number in numbers)
        data = await asyncio.get_running_loop().run_in_executor(self.readers, self._draw, first, rest)
        if data is None:
            self.send_error(404)
            return
        self.set_header("Content-Type", self.kind)
        self.set_header("Cache-Control", "private, max-age=600")
        self.finish(data)

    def _draw(self, number: int, rest: list[int]) -> bytes | None:
        if number >= len(self.catalogue):
            return None
        try:
            slide = self.catalogue.slide(number)
        except TilestreamError:
            return None
        zoom = self.catalogue.zoom
        if len(rest) == 3:
            return zoom.tile(number, slide, (rest[0], rest[1], rest[2]))
        tile = rest[0]
        if tile >= slide.layout.tiles:
            return None
        return encode_jpeg(zoom.square(number, slide, float(slide.y[tile]), float(slide.x[tile]), slide.l0_extent, CROP_PX))


class _Objects(_Pixels):
    """Objects or labels by numbers: /objects/<slide>/<head>/<level>/<column>/<row>.png; heads are counted in the order of their names."""

    kind = "image/png"

    def _draw(self, number: int, rest: list[int]) -> bytes | None:
        if number >= len(self.catalogue):
            return None
        try:
            slide = self.catalogue.slide(number)
            heads = sorted(slide.heads)
            return draw_answer_tile(slide, heads[rest[0]], (rest[1], rest[2], rest[3])) if rest[0] < len(heads) else None
        except TilestreamError:
            return None


class Viewer:
    """A running viewer; `address` is what a browser opens.

    Raises
    ------
    ConfigError
        The host or the port cannot be had.
    """

    def __init__(self, catalogue: Catalogue, host: str = "127.0.0.1", port: int = 0, annotations: Path | None = None) -> None:
        if host in ANY:
            raise ConfigError(
                f"--host: {host!r} is every address of this machine. Give the one address or name by which browsers reach it."
            )
        self.catalogue = catalogue
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="pixels")
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        digits = r"([0-9]{1,9})"
        pixels = {"catalogue": catalogue, "readers": self._readers}
        patterns = [
            (rf"/tiles/{digits}/{digits}/{digits}/{digits}\.jpg", _Pixels, pixels),
            (rf"/crops/{digits}/{digits}\.jpg", _Pixels, pixels),
            (rf"/objects/{digits}/{digits}/{digits}/{digits}/{digits}\.png", _Objects, pixels),
        ]
        page = Application(FunctionHandler(lambda doc: make_page(doc, catalogue, self._workers, annotations)))
        try:
            sockets = bind_sockets(port, host, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host, --port: {host} port {port} cannot be listened on: {error}. Choose others; port 0 is any free one."
            ) from error
        hosts = frozenset({host.lower(), *(LOOPBACK if host in LOOPBACK else ())})
        self._loop = IOLoop.current()
        app = _Tornado({"/": page}, hosts, patterns)
        http = HTTPServer(app)
        http.add_sockets(sockets)
        self._server = BaseServer(self._loop, app, http)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{sockets[0].getsockname()[1]}/"

    def start(self) -> None:
        """Answer requests while the loop of this thread runs."""
        self._server.start()

    def stop(self) -> None:
        """Answer no more, and let go of threads and files."""
        self._server.stop()
        for pool in (self._readers, self._workers):
            pool.shutdown(wait=True, cancel_futures=True)
        self.catalogue.zoom.images.close()


def serve(
    outputs: list[str],
    say: Callable[[str], None],
    *,
    slide: str | None = None,
    roots: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    browser: bool = True,
    annotations: Path | None = None,
) -> None:
    """Show outputs until the process is interrupted; images below `roots` are opened whoever made a store, and what is drawn goes into `annotations`.

    Raises
    ------
    InputError
        There is no output.
    ConfigError
        No output has the slide, the host or the port cannot be had, or several outputs are to be drawn on.
    """
    if annotations is not None and len(outputs) > 1:
        raise ConfigError(f"--annotations: {len(outputs)} outputs are shown, but regions are drawn on the slides of one. Name one output.")
    # A page that is closed while it is sent something is no event.
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)

    async def run() -> None:
        viewer = Viewer(Catalogue(outputs, slide, roots), host, port, annotations)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        viewer.start()
        say(f"{viewer.address}  (Ctrl-C ends it)")
        if browser:
            threading.Thread(target=webbrowser.open, args=[viewer.address], daemon=True).start()
        await ended.wait()
        viewer.stop()

    asyncio.run(run())
