"""The viewer in tests: stores as it sees them, and its server in a process of its own."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from tests.support.needs import without
from tests.support.signals import HEARING
from tilestream.store.folder import Folder
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.server import Viewer
from tilestream.viewer.slide import BlockCache, ViewedSlide

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def viewed(path):
    return ViewedSlide(Folder(str(path)), BlockCache())


def files(folder):
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


JSON = {"Content-Type": "application/json"}


def ask(output, requests, *, host="127.0.0.1", annotations=None, roots=()):
    """Status and body of each (path, headers, body to post), from a viewer of `output`."""

    async def talk():
        viewer = Viewer(Catalogue([str(output)], roots=roots), host, annotations=annotations)
        answers = []
        try:
            for path, *more in requests:
                headers, body = more[0] if more else {}, more[1] if len(more) > 1 else None
                told = {} if body is None else {"method": "POST", "body": json.dumps(body)}
                request = HTTPRequest(viewer.address.rstrip("/") + path, headers=headers, **told)
                answer = await AsyncHTTPClient().fetch(request, raise_error=False)
                answers.append((answer.code, answer.body))
        finally:
            viewer.stop()
        return answers

    return asyncio.run(talk())


@contextmanager
def running(*outputs, options=(), number=signal.SIGINT, through=()):
    """The address of a viewer in a process of its own, which is interrupted and must end quietly; `through` others, such as nohup."""
    command = [*HEARING, *through, sys.executable, "-m", "tilestream", "view", *map(str, outputs), "--no-browser", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[0], process
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert errors == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


HELPERS = """
window.pane = (k = 0) => tilestream.panes[k];
window.at = (x, y, k = 0) => { const see = pane(k).view(), box = pane(k).stage.getBoundingClientRect(); return [box.left + see.x(x), box.top + see.y(y)] };
window.still = (k = 0) => { const p = pane(k), a = p.looking(true), b = p.looking(false); return Math.abs(a.x - b.x) + Math.abs(a.y - b.y) < 1e-6 && a.z === b.z };
null
"""
"""`pane(k)` of the page; `at(x, y)`: where level-0 px are on the screen; `still()`: whether nothing moves any more."""


@contextmanager
def browsing(*outputs, options=(), size=(1280, 800), state=""):
    """A page of the viewer and what it asked for; that it complained of nothing is checked."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        without("no Chromium on the path")
    with running(*outputs, options=options) as (address, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address + state)
        settled(page)
        yield page, asked
        assert wrong == []
        assert all(urlsplit(url).netloc == urlsplit(address).netloc for url in asked if not url.startswith(("data:", "blob:")))
        browser.close()


def settled(page):
    """Wait until a page that was opened or loaded again is there, with the helpers of these tests."""
    page.wait_for_selector("body[data-ready]")
    page.evaluate(HELPERS)
    until(page, "pane().facts.problem || still()")


def until(page, held, told=None):
    """Wait until an expression, or a function of `told`, holds on a page whose policy lets nobody evaluate text later on."""
    test = f"() => {held}" if told is None else held
    page.evaluate(
        f"""async (told) => {{ const held = {test}, last = performance.now() + 30000;
          while (!held(told)) {{ if (performance.now() > last) throw new Error("never came true"); await new Promise(requestAnimationFrame) }} }}""",
        told,
    )
