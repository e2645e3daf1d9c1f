"""Claim: the viewer shows a slide in under 1.5 s, answers a click in under 100 ms, pans at 60 frames a second, and stays below 300 MiB.

    python -m benchmarks.bench_view [--side 65536] [--dim 192] [--clicks 20] [--tiles 200] [--json]

The slide is a made one, drawn at the first run, which takes minutes for a large one; its embeddings are random, one tile of 224 px at 0.25 µm/px
for each place. The viewer is a process of its own.

first    Seconds from opening the page in headless Chromium until the whole slide is drawn sharp; median of three pages.
tile     Milliseconds from asking for a tile of the zoom, of random levels and places, until its bytes are here; none is asked for twice.
click    Milliseconds from a click in the browser until the similarity map and the nearest tiles are there; the first click, which takes the
         lengths of the embeddings, is told by itself.
pan      Frames that Chromium drew a second, from its trace, while the slide is dragged for three seconds at 10x with a layer over it; and the
         95th percentile of the time between two, ms. Without a GPU the processor draws them, beside the server.
peak     Resident memory of the viewer at its highest, MiB.

Chromium is the `chromium` on the path, or --chromium. Without it first and click are left out.
"""

import argparse
import http.client
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.store.folder import Folder
from tilestream.store.layout import Layout, TileColumns
from tilestream.store.slide_store import SlideStore
from tilestream.tiles.thumbnail import read_thumbnail

TILE = 224
FIRST = "(async () => { const p = tilestream.panes[0]; while (!p.osd.world.getItemAt(0)?.getFullyLoaded()) await new Promise(requestAnimationFrame) })()"
CLICK = """async ([across, down]) => {
  const pane = tilestream.panes[0], from = performance.now(), laid = pane.layer;
  tilestream.click(pane, ...pane.place(pane.width * across, pane.height * down));
  while (pane.layer === laid || !pane.layer?.nearest) await new Promise(requestAnimationFrame);
  return performance.now() - from;
}"""


def make_output(folder: Path, side: int, dim: int) -> int:
    """A finished store of random embeddings over a made slide; returns its tiles."""
    address = f"sample://he?width={side}&height={side}"
    with open_source(address, SourceOptions()) as source:
        info, small = source.info, read_thumbnail(source, 16.0)
    count = side // TILE
    row, col = (places.astype(np.int64) for places in np.divmod(np.arange(count**2), count))
    layout = Layout(count**2, dim, 2048, "float16")
    tiles = {"size": TILE, "stride": TILE, "edge": "drop"}
    recipe = {"tiles": tiles, "encoder": {"name": "random"}, "output": {"save": ["tiles"]}}
    about = {"address": address, "mpp": info.mpp, "height": side, "width": side, "level": 0, "downsample": 1.0, "scale": 1.0}
    store = SlideStore(Folder(str(folder / "slide.zarr")))
    columns = TileColumns(row, col, row * TILE, col * TILE, np.ones(count**2, np.float32), float(TILE))
    from tilestream.store.picture import png_bytes

    store.create(layout, columns, {"recipe": recipe, "source": about}, uns={}, objects={"thumbnail.png": png_bytes(small.pixels)})
    made = np.random.default_rng(0)
    for shard in range(layout.shards):
        rows = layout.rows(shard)
        values = made.standard_normal((rows.stop - rows.start, dim)).astype(np.float16)
        status = np.zeros(len(values), np.int8)
        store.write_shard(shard, {"tables/tiles/X": values, "tables/tiles/obs/status/codes": status}, {"counts": {}})
    store.seal()
    store.complete({"tiles": layout.tiles, "counts": {}})
    return layout.tiles


def time_tiles(address: str, side: int, count: int) -> list[float]:
    """Milliseconds of each of `count` tiles of the zoom."""
    from tilestream.geometry import Size
    from tilestream.viewer.deepzoom import Zoom

    zoom, chosen = Zoom(Size(side, side)), random.Random(0)
    every = [(z, x, y) for z in range(zoom.deepest + 1) for x in range(1 << z) for y in range(1 << z) if zoom.shape(z, x, y)]
    link = http.client.HTTPConnection(urlsplit(address).netloc)
    spent = []
    for z, x, y in chosen.sample(every, min(count, len(every))):
        start = time.perf_counter()
        link.request("GET", f"/tiles/0/{z}/{x}/{y}.jpg")
        answer = link.getresponse()
        answer.read()
        assert answer.status == 200
        spent.append((time.perf_counter() - start) * 1e3)
    link.close()
    return spent


def time_page(address: str, chromium: str, clicks: int) -> dict[str, Any]:
    """First pictures, s, and clicks, ms."""
    from playwright.sync_api import sync_playwright

    first, spent = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1440, "height": 860})
            start = time.perf_counter()
            page.goto(address, wait_until="commit")
            page.wait_for_selector("body[data-ready]")
            page.evaluate(FIRST)
            first.append(time.perf_counter() - start)
        page.wait_for_timeout(4000)  # the scatter is made meanwhile
        chosen = random.Random(1)
        for _ in range(clicks + 1):
            spent.append(page.evaluate(CLICK, [0.3 + 0.4 * chosen.random(), 0.3 + 0.4 * chosen.random()]))
            page.wait_for_timeout(300)
        page.evaluate("document.querySelector('[data-power=\"10\"]').click()")
        page.wait_for_timeout(1500)
        panned = time_pan(browser, page)
        browser.close()
    return {"first_s": median(first), "first_click_ms": spent[0], **quantiles("click", spent[1:]), **panned}


def time_pan(browser: Any, page: Any, seconds: float = 3.0) -> dict[str, float]:
    """Frames drawn while the middle of the page is dragged about, from the trace."""
    y, x = (page.viewport_size[side] / 2 for side in ("height", "width"))
    page.mouse.move(x - 200, y)
    page.mouse.down()
    browser.start_tracing(page=page, categories=["viz"])
    start = time.perf_counter()
    while (gone := time.perf_counter() - start) < seconds:
        page.mouse.move(x - 200 * math.cos(gone * 2.5), y + 120 * math.sin(gone * 2.5))
    events = json.loads(browser.stop_tracing())["traceEvents"]
    page.mouse.up()
    drawn = np.sort([event["ts"] for event in events if event["name"] == "Graphics.Pipeline.DrawAndSwap" and event["ph"] in "bB"]) / 1e3
    gaps = np.diff(drawn)
    return {"pan_fps": 1e3 * len(gaps) / float(gaps.sum()), "pan_gap_p95_ms": float(np.percentile(gaps, 95))}


def quantiles(name: str, spent: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {f"{name}_ms": median(spent), f"{name}_p95_ms": float(np.percentile(spent, 95))}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        told: dict[str, Any] = {"side": chosen.side, "dim": chosen.dim, "tiles": make_output(Path(folder), chosen.side, chosen.dim)}
        command = [sys.executable, "-m", "tilestream", "view", folder, "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                address = process.stdout.readline().split()[0]
                if chosen.chromium and chosen.clicks:
                    told |= time_page(address, chosen.chromium, chosen.clicks)
                told |= quantiles("tile", time_tiles(address, chosen.side, chosen.tiles))
                # Not getrusage: it would count what this process had at most when it started the viewer.
                told["peak_mib"] = int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
            finally:
                process.send_signal(signal.SIGINT)
    if chosen.json:
        print(json.dumps(told))
    else:
        for key, value in told.items():
            print(f"{key:<16}{value:,.1f}" if isinstance(value, float) else f"{key:<16}{value:,}")
    return told


if __name__ == "__main__":
    main()
