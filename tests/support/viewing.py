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

from tests.support.needs import without
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


HELPERS = """
window.tsModel = (name) => [...Bokeh.documents[0]._all_models.values()].find((m) => { try { return m.name === name } catch { return false } });
window.tsFrame = (name) => { const v = Bokeh.index.find_one(tsModel(name)), r = v.frame.bbox, e = v.el.getBoundingClientRect();
  return [e.left + r.left, e.top + r.top, r.width, r.height] };
window.tsPoint = (name, x, y) => { const v = Bokeh.index.find_one(tsModel(name)), e = v.el.getBoundingClientRect();
  return [e.left + v.frame.x_scale.compute(x), e.top + v.frame.y_scale.compute(y)] };
window.tsImage = (name) => { const d = tsModel(name).data, i = d.image; return i.length ? Array.from(i[0]) : [] }; null
"""


@contextmanager
def browsing(*outputs, options=()):
    """A page of the viewer and what it asked for; that it complained of nothing is checked."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        without("no Chromium on the path")
    with running(*outputs, options=options) as (address, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        page.evaluate(HELPERS)
        page.wait_for_function("tsModel('points data').data.x.length > 0 || tsModel('scatter').title.text.includes('no tiles')")
        yield page, asked
        assert wrong == []
        assert all(urlsplit(url).netloc == urlsplit(address).netloc for url in asked if not url.startswith("data:"))
        browser.close()
