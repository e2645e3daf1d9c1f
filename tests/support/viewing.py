"""The viewer in tests: stores as it sees them, and its server in a process of its own."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from tilestream.store.folder import Folder
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.server import Viewer
from tilestream.viewer.slide import BlockCache, ViewedSlide

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def viewed(path):
    return ViewedSlide(Folder(str(path)), BlockCache())


def files(folder):
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def ask(output, requests, *, host="127.0.0.1"):
    """Status and body of each (path, headers), from a viewer of `output`."""

    async def talk():
        viewer = Viewer(Catalogue([str(output)]), host)
        viewer.start()
        answers = []
        try:
            for path, headers in requests:
                answer = await AsyncHTTPClient().fetch(HTTPRequest(viewer.address.rstrip("/") + path, headers=headers), raise_error=False)
                answers.append((answer.code, answer.body))
            port = urlsplit(viewer.address).port
            for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
                with pytest.raises(Exception, match="403"):
                    await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=headers), subprotocols=["bokeh", "x"])
        finally:
            viewer.stop()
        return answers

    return asyncio.run(talk())


@contextmanager
def running(*outputs, options=()):
    """The address of a viewer in a process of its own, which is interrupted and must end quietly."""
    command = [sys.executable, "-m", "tilestream", "view", *map(str, outputs), "--no-browser", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "BOKEH_LOG_LEVEL": "error"}
    )
    try:
        yield process.stdout.readline().split()[0], process
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert errors == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
