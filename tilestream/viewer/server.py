"""The server of the page: loopback unless told otherwise, for the hosts it was told, of numbers and never of paths."""

from __future__ import annotations

import asyncio
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tilestream.config.local_files import refuse_url
from tilestream.errors import ConfigError
from tilestream.tiles.decoding.signals import stopping
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.web.handlers import Nothing, Shared, routes

READERS = 4
"""Threads that read pixels."""

LARGEST_REQUEST = 16 * 1024**2
"""Bytes of what a page may send at once: a selection of a million tiles."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("", "0.0.0.0", "::", "*")  # noqa: S104 - to refuse them


class _Refused(RequestHandler):
    """The answer to a request for another host."""

    def prepare(self) -> None:
        self.set_status(403)
        self.finish("This address is not the one that the viewer was started for: see --host.\n")


class _Guarded(Application):
    """The application behind a check of Host and Origin: a page elsewhere whose name is made to lead here gets nothing."""

    def __init__(self, hosts: frozenset[str], shared: Shared) -> None:
        self._hosts = hosts
        super().__init__(
            routes(shared),
            default_handler_class=Nothing,
            default_handler_args={"shared": shared},
            compress_response=False,
            log_function=_say_nothing,
        )

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """The handler of a request, or the refusal."""
        origin = request.headers.get("Origin")
        if _host_name(request.host) in self._hosts and (origin is None or urlsplit(origin).netloc == request.host):
            return super().find_handler(request, **options)
        return self.get_handler_delegate(request, _Refused)


def _say_nothing(_: RequestHandler) -> None:
    """Requests are not told in the terminal."""


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


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
        readers, workers, slow = (
            ThreadPoolExecutor(most, thread_name_prefix=name) for most, name in ((READERS, "pixels"), (1, "embeddings"), (1, "slow"))
        )
        self._pools = readers, workers, slow
        shared = Shared(catalogue, readers, workers, slow, annotations)
        try:
            sockets = bind_sockets(port, host, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host, --port: {host} port {port} cannot be listened on: {error}. Choose others; port 0 is any free one."
            ) from error
        hosts = frozenset({host.lower(), *(LOOPBACK if host in LOOPBACK else ())})
        self._http = HTTPServer(_Guarded(hosts, shared), max_body_size=LARGEST_REQUEST)
        self._http.add_sockets(sockets)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{sockets[0].getsockname()[1]}/"

    def stop(self) -> None:
        """Answer no more, and let go of threads and files."""
        self._http.stop()
        for pool in self._pools:
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
        No output has the slide, the host or the port cannot be had, several outputs are to be drawn on, or a file is where drawings belong.
    """
    if annotations is not None:
        refuse_url(annotations, "--annotations")
    if annotations is not None and len(outputs) > 1:
        raise ConfigError(f"--annotations: {len(outputs)} outputs are shown, but regions are drawn on the slides of one. Name one output.")
    if annotations is not None and annotations.exists() and not annotations.is_dir():
        raise ConfigError(f"--annotations: {annotations} is a file. Name the folder that holds, or is to hold, <slide id>.geojson.")

    async def run() -> None:
        viewer = Viewer(Catalogue(outputs, slide, roots), host, port, annotations)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in stopping():
            loop.add_signal_handler(number, ended.set)
        say(f"{viewer.address}  (Ctrl-C ends it)")
        if browser:
            threading.Thread(target=webbrowser.open, args=[viewer.address], daemon=True).start()
        await ended.wait()
        viewer.stop()

    asyncio.run(run())
