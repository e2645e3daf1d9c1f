"""The viewer: what is computed, what the server refuses, and in a browser what a person sees and does."""

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from tests.support.images import make_image, write_pyramid
from tests.support.needs import without
from tests.support.runs import embed
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, InputError
from tilestream.geometry import Region, Size
from tilestream.store.folder import Folder
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.clusters import cluster
from tilestream.viewer.deepzoom import SIDE, DeepZoom, Zoom
from tilestream.viewer.neighbours import nearest, similarity
from tilestream.viewer.overlays import on_places, status_colours, tissue_overlay
from tilestream.viewer.pixels import Images
from tilestream.viewer.server import Viewer
from tilestream.viewer.slide import BlockCache, ViewedSlide

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def viewed(path):
    return ViewedSlide(Folder(str(path)), BlockCache())


def files(folder):
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run of two slides whose files are there."""
    folder = tmp_path_factory.mktemp("view")
    slides = [write_pyramid(folder / f"{name}.tif", make_image(2300, 3100, seed), levels=4) for seed, name in enumerate("ab")]
    embed(slides, folder / "out", tiles={"tissue": "otsu", "level": None, "mpp": 0.5})
    return folder / "out"


# -- what is computed ---------------------------------------------------------------------------------------------------


def test_similarity_in_blocks_is_that_of_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr("tilestream.viewer.slide.BLOCK_ROWS", 7)
    store = make_store(tmp_path / "s.zarr", rows=9, cols=11, dim=12, failed=[3, 50])
    x = store.array("tables/tiles/X")[:]
    expected = x @ x[20] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[20])
    found = similarity(viewed(tmp_path / "s.zarr"), x[20])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 50]
    order = np.argsort(-np.where(np.isnan(expected), -9, expected), kind="stable")
    assert nearest(found, 5, exclude=20).tolist() == order[1:6].tolist()
    assert len(nearest(found, 500)) == 97


def test_clusters_find_separate_groups_and_repeat():
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    scores = (truth[:, None] * 10 + random.normal(size=(100, 3))).astype(np.float16)
    scores[7] = np.nan
    found = cluster(scores, 3)
    assert found[7] == -1
    known = np.arange(100) != 7
    np.testing.assert_array_equal(found[known], truth[known])  # the largest group comes first
    np.testing.assert_array_equal(found, cluster(scores, 3))
    assert set(cluster(np.zeros((5, 3), np.float16), 4).tolist()) == {0}
    assert cluster(np.full((4, 3), np.nan, np.float16), 2).tolist() == [-1] * 4


def test_tiles_of_an_unfinished_slide_that_are_not_committed_are_absent(tmp_path):
    store = make_store(tmp_path / "s.zarr", rows=30, cols=30, finish=False)
    store.folder.delete(".tilestream/shards/tiles-000001.json")
    slide = viewed(tmp_path / "s.zarr")
    assert (slide.status[:512] == 0).all()
    assert (slide.status[512:] == -1).all()
    assert "388 tiles to come" in slide.words
    similar = similarity(slide, slide.embedding(0))
    assert np.isfinite(similar[:512]).all()
    assert np.isnan(similar[512:]).all()
    alpha = on_places(slide.places(), status_colours(slide.status), "").rgba >> 24
    assert alpha.sum() == 512 * 255


def test_overlays_of_failed_missing_and_empty_tiles(tmp_path):
    keep = np.ones((4, 5), bool)
    keep[1, 2] = False
    make_store(tmp_path / "f.zarr", failed=[4], keep=keep)
    slide = viewed(tmp_path / "f.zarr")
    rgba = on_places(slide.places(), status_colours(slide.status), "").rgba
    assert rgba.shape == (4, 5)
    assert rgba[1, 2] == 0
    assert rgba[0, 4] != rgba[0, 3]
    assert slide.scores().shape == (19, 6)
    assert np.isnan(slide.scores()[4]).all()
    make_store(tmp_path / "n.zarr", keep=np.zeros((4, 5), bool))
    none = viewed(tmp_path / "n.zarr")
    assert "no tissue" in none.words
    assert np.isnan(none.scores()).all()
    assert none.tile_at(10, 10) is None
    assert tissue_overlay(none, none.places()).rgba.any()
    (tmp_path / "n.zarr" / "tissue.png").unlink()
    assert "no tissue was looked for" in tissue_overlay(none, none.places()).words


def test_a_tile_of_the_zoom_is_the_mean_of_the_pixels_below_it(output):
    catalogue = Catalogue([str(output)], "a")
    slide = catalogue.slide(0)
    zoom = Zoom(slide.size)
    image = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (zoom.deepest, 1, 1)))), np.float32)
    with catalogue.zoom.images.using(0, slide) as (source, why):
        assert not why
        exact = source.read_region(0, Region(SIDE, SIDE, SIDE, SIDE)).astype(np.float32)
        coarse = source.read_region(0, Region(0, 0, 2 * SIDE, 2 * SIDE)).reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
    assert np.abs(image - exact).mean() < 4  # JPEG twice
    above = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (zoom.deepest - 1, 0, 0)))), np.float32)
    assert np.abs(above - coarse).mean() < 6
    assert catalogue.zoom.tile(0, slide, (zoom.deepest + 1, 0, 0)) is None
    assert catalogue.zoom.tile(0, slide, (0, 1, 0)) is None
    catalogue.zoom.images.close()


def test_only_the_right_level_is_read_and_never_all_of_it(output, monkeypatch):
    catalogue = Catalogue([str(output)], "a")
    slide, zoom = catalogue.slide(0), catalogue.zoom
    seen = []
    with zoom.images.using(0, slide) as (source, _):
        read = source.read_region
        monkeypatch.setattr(source, "read_region", lambda level, region: (seen.append((level, region)), read(level, region))[1])
    deepest = Zoom(slide.size).deepest
    for level in range(deepest + 1):
        zoom.tile(0, slide, (level, 0, 0))
    assert [level for level, _ in seen] == [min(3, deepest - level) for level in range(deepest + 1)]
    assert all(max(region.height, region.width) <= SIDE + 1 for _, region in seen)
    zoom.images.close()


def test_images_in_use_stay_open_and_idle_ones_are_closed(output, monkeypatch):
    monkeypatch.setattr("tilestream.viewer.pixels.SOURCES_OPEN", 1)
    catalogue, images = Catalogue([str(output)]), Images()
    with images.using(0, catalogue.slide(0)) as (first, _):
        with images.using(1, catalogue.slide(1)) as (second, _):
            assert first.read_region(0, Region(0, 0, 8, 8)).shape == (8, 8, 3)
            assert second is not first
        closed = []
        monkeypatch.setattr(second, "close", lambda: closed.append(second))
    with images.using(0, catalogue.slide(0)):
        assert closed == [second]
    images.close()


def test_a_missing_image_is_shown_by_its_thumbnail(tmp_path):
    make_store(tmp_path / "m.zarr", address=str(tmp_path / "gone.svs"))
    slide, zoom = viewed(tmp_path / "m.zarr"), DeepZoom(Images())
    with zoom.images.using(0, slide) as (source, why):
        assert source is None
        assert "gone.svs: no such file" in why
    tile = np.asarray(Image.open(io.BytesIO(zoom.tile(0, slide, (Zoom(slide.size).deepest, 0, 0)))))
    assert abs(int(tile.mean()) - 200) <= 1
    make_store(tmp_path / "s.zarr", address="sample://he?width=2048&height=2048&seed=123456")
    with zoom.images.using(1, viewed(tmp_path / "s.zarr")) as (source, why):
        assert source is None  # it is not drawn anew
        assert "is not drawn any more" in why


def test_the_square_of_a_zoom_holds_the_image():
    zoom = Zoom(Size(8192, 12288))
    assert zoom.l0_side >= 12288
    assert zoom.scale(zoom.deepest) == 1
    assert zoom.meets(zoom.deepest, 23, 15)
    assert not zoom.meets(zoom.deepest, 24, 0)


# -- the server ---------------------------------------------------------------------------------------------------------


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


def test_the_server_answers_by_number_and_for_its_host_alone(output):
    before = files(output)
    answers = ask(
        output,
        [
            ("/", {}), ("/tiles/0/0/0/0.jpg", {}), ("/crops/1/0.jpg", {}), ("/", {"Host": "localhost"}),
            ("/", {"Host": "evil.example"}), ("/tiles/0/0/0/0.jpg", {"Host": "evil.example:80"}), ("/", {"Host": "127.0.0.1.evil.example"}),
            ("/tiles/0/0/0/0.jpg", {"Origin": "http://evil.example"}), ("/static/js/bokeh.min.js", {"Host": "evil.example"}),
            ("/tiles/9/0/0/0.jpg", {}), ("/crops/0/999999.jpg", {}), ("/tiles/0/0/0/..%2f..%2fa.tif", {}), ("/crops/0/../../run.json", {}),
            ("/run.json", {}), ("/static/../../../../etc/passwd", {}), ("/static/%2e%2e/%2e%2e/server.py", {}), ("//etc/passwd", {}),
        ],
    )  # fmt: skip
    codes = [code for code, _ in answers]
    assert codes[:4] == [200, 200, 200, 200]
    assert codes[4:9] == [403] * 5
    assert all(code in (400, 403, 404) for code in codes[9:])
    assert b"http://cdn" not in answers[0][1]
    assert b"https://" not in answers[0][1]
    assert Image.open(io.BytesIO(answers[1][1])).size == (SIDE, SIDE)
    assert files(output) == before


def test_the_command_ends_quietly_and_refuses_what_it_cannot_do(output, tmp_path, monkeypatch, capsys):
    for arguments, code, words in (
        ([str(tmp_path)], 3, "no output of tilestream here"),
        ([str(output), "--slide", "zz"], 2, "--slide: zz is in none"),
        ([str(output), "--host", "0.0.0.0"], 2, "every address"),
        ([str(output), "--host", "host.invalid"], 2, "cannot be listened on"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["view", *arguments, "--no-browser"])
        assert ended.value.code == code
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(SystemExit) as ended:
        main(["view", str(output)])
    assert ended.value.code == 2
    assert "pip install 'tilestream[view]'" in capsys.readouterr().err


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


def test_an_interrupt_ends_it_with_0_and_torch_is_never_loaded(output):
    with running(output) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()


# -- in a browser -------------------------------------------------------------------------------------------------------

HELPERS = """
window.tsModel = (name) => [...Bokeh.documents[0]._all_models.values()].find((m) => { try { return m.name === name } catch { return false } });
window.tsFrame = (name) => { const v = Bokeh.index.find_one(tsModel(name)), r = v.frame.bbox, e = v.el.getBoundingClientRect();
  return [e.left + r.left, e.top + r.top, r.width, r.height] };
window.tsPoint = (name, x, y) => { const v = Bokeh.index.find_one(tsModel(name)), e = v.el.getBoundingClientRect();
  return [e.left + v.frame.x_scale.compute(x), e.top + v.frame.y_scale.compute(y)] };
window.tsImage = (name) => { const d = tsModel(name).data, i = d.image; return i.length ? Array.from(i[0]) : [] }; null
"""


@contextmanager
def browsing(*outputs):
    """A page of the viewer, what it asked for, and what it complained of, which must be nothing."""
    if CHROMIUM is None:
        without("no Chromium on the path")
    with running(*outputs) as (address, _), sync_playwright() as driver:
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


@pytest.mark.slow
def test_a_person_zooms_clicks_selects_and_groups(output):
    store = viewed(output / "a.zarr")
    before = files(output)
    with browsing(output) as (page, asked):
        deepest = Zoom(store.size).deepest
        left, top, width, height = page.evaluate("tsFrame('slide')")
        page.mouse.move(left + width / 2, top + height / 2)
        asked.clear()
        for _ in range(3):
            page.mouse.wheel(0, -400)
            page.wait_for_timeout(700)
        span = page.evaluate("tsModel('x').end - tsModel('x').start")
        levels = [int(url.split("/")[5]) for url in asked if "/tiles/" in url]
        right = min(deepest, int(np.floor(np.log2(width / span * (SIDE << deepest) / 256))))
        assert levels[-1] == right
        assert levels == sorted(levels)  # nothing of a level that was not come to yet, or was left

        tile = int(np.flatnonzero(store.good)[len(store.good) // 2])
        half = store.l0_extent / 2
        page.evaluate("tsModel('x').setv({start: 0, end: 3100}); tsModel('y').setv({start: -2300, end: 0})")
        page.wait_for_timeout(500)
        page.mouse.click(*page.evaluate(f"tsPoint('slide', {store.x[tile] + half}, {-store.y[tile] - half})"))
        page.wait_for_function("tsModel('gallery data').data.number.length == 12 || tsModel('gallery data').data.number.includes(1)")
        x = np.asarray(store.embeddings[:], np.float64)
        expected = x @ x[tile] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[tile])
        data = page.evaluate(
            "(({tile, number, words}) => ({tile: [...tile], number: [...number], words: [...words]}))(tsModel('gallery data').data)"
        )
        own = [k for k, number in zip(data["tile"], data["number"], strict=True) if number == 0]
        order = nearest(expected.astype(np.float32), len(own), tile)
        np.testing.assert_allclose(expected[own], expected[order], atol=1e-5)
        assert data["words"][0] == f"{expected[order[0]]:.3f}"
        shown = np.array(page.evaluate("tsImage('overlay data')"), np.uint32)
        from tilestream.viewer.overlays import similarity_overlay

        rgba = similarity_overlay(expected.astype(np.float32), store.places()).rgba.ravel()
        channels = [a.view(np.uint8).astype(int) for a in (shown, rgba.copy())]
        assert np.abs(channels[0] - channels[1]).max() <= 2

        page.evaluate("tsModel('points data').selected.indices = [1, 3, 4]")
        page.wait_for_function("tsModel('lit data').data.image.length == 1")
        chosen = page.evaluate("[...tsModel('points data').data.tile]")
        places = store.places().tile.ravel()
        lit = places[np.array(page.evaluate("tsImage('lit data')")) != 0]
        assert sorted(lit.tolist()) == sorted(chosen[k] for k in (1, 3, 4))

        page.evaluate("tsModel('points data').selected.indices = []")
        box = page.evaluate("tsFrame('scatter')")
        corners = [(5, 5), (box[2] - 5, 5), (box[2] - 5, box[3] - 5), (5, box[3] - 5)]
        page.mouse.move(box[0] + 5, box[1] + 5)
        page.mouse.down()
        for across, down in corners:
            page.mouse.move(box[0] + across, box[1] + down, steps=4)
        page.mouse.up()
        page.wait_for_function("tsImage('lit data').filter((v) => v).length == tsModel('points data').data.x.length")

        page.evaluate("tsModel('k').value = 3; tsModel('k').value_throttled = 3")
        page.wait_for_function("tsModel('overlay data').data.image.length && new Set(tsImage('overlay data').filter((v) => v)).size == 3")
    assert files(output) == before


@pytest.mark.slow
def test_the_gallery_leads_to_its_places_and_panels_are_linked(output):
    with browsing(output, output) as (page, _):
        assert (
            page.evaluate(
                "[...Bokeh.documents[0]._all_models.values()].filter((m) => { try { return m.name === 'slide' && m.x_range === tsModel('x') } catch { return false } }).length"
            )
            == 2
        )
        store = viewed(output / "a.zarr")
        tile = int(np.flatnonzero(store.good)[0])
        page.mouse.click(*page.evaluate(f"tsPoint('slide', {store.x[tile] + 100}, {-store.y[tile] - 100})"))
        page.wait_for_function("tsModel('gallery data').data.number.includes(1)")
        found = page.evaluate(
            "((d) => { const k = [...d.number].indexOf(1); return [d.x[k] + 0.4, d.y[k] - 0.4, d.tile[k]] })(tsModel('gallery data').data)"
        )
        page.mouse.click(*page.evaluate(f"tsPoint('gallery', {found[0]}, {found[1]})"))
        page.wait_for_function("tsModel('title').text.includes('<b>b</b>')")
        other = viewed(output / "b.zarr")
        half = other.l0_extent / 2
        y, x = other.y[found[2]] + half, other.x[found[2]] + half
        page.wait_for_function(  # the ranges follow the title in messages of their own
            "([x, y]) => [['x', x], ['y', -y]].every(([name, at]) => Math.abs((tsModel(name).start + tsModel(name).end) / 2 - at) < 1)",
            arg=[float(x), float(y)],
        )


@pytest.mark.slow
def test_the_sample_slide_opens_with_the_encoder_of_the_package(tmp_path):
    tiles = {"mpp": 0.5, "level": None, "tissue": "otsu"}
    embed("sample://he?width=4096&height=4096&seed=0", tmp_path, encoder="tilestream-tiny", tiles=tiles)
    store = viewed(next(tmp_path.glob("*.zarr")))
    tile = int(np.flatnonzero(store.good)[7])
    with browsing(tmp_path) as (page, asked):
        assert page.evaluate("tsModel('points data').data.x.length") == store.good.sum() > 20
        half = store.l0_extent / 2
        page.mouse.click(*page.evaluate(f"tsPoint('slide', {store.x[tile] + half}, {-store.y[tile] - half})"))
        page.wait_for_function("tsModel('gallery data').data.number.length == 6")
        assert page.evaluate("tsImage('overlay data').filter((v) => v).length") == store.good.sum()
        page.wait_for_timeout(500)
        assert any("/crops/0/" in url for url in asked)


@pytest.mark.slow
def test_every_kind_of_output_opens(output, tmp_path):
    make_store(tmp_path / "gone.zarr", rows=8, cols=9, address=str(tmp_path / "gone.svs"), failed=[3])
    with browsing(tmp_path) as (page, _):
        assert "stored thumbnail is shown" in page.evaluate("tsModel('title').text")
        assert "1 failed" in page.evaluate("tsModel('title').text")
        page.wait_for_function("tsImage('overlay data').length == 72")
    shutil.rmtree(tmp_path / "gone.zarr")
    store = make_store(tmp_path / "part.zarr", rows=30, cols=30, finish=False)
    store.folder.delete(".tilestream/shards/tiles-000001.json")
    with browsing(tmp_path) as (page, _):
        assert "388 tiles to come" in page.evaluate("tsModel('title').text")
    shutil.rmtree(tmp_path / "part.zarr")
    make_store(tmp_path / "none.zarr", keep=np.zeros((4, 5), bool))
    with browsing(tmp_path) as (page, _):
        assert "no tissue was found" in page.evaluate("tsModel('title').text")


def test_a_slide_without_embeddings_is_refused_by_name(tmp_path):
    store = make_store(tmp_path / "s.zarr", finish=False)
    store.drop(["tables/tiles/X"])
    store.complete({})
    with pytest.raises(InputError, match="holds no embeddings"):
        viewed(tmp_path / "s.zarr")
    catalogue = Catalogue([str(tmp_path)])
    assert "holds no embeddings" in catalogue.problem(0)
    with pytest.raises(ConfigError, match="--slide: t is in none"):
        Catalogue([str(tmp_path)], "t")
    from bokeh.document import Document

    from tilestream.viewer.page import make_page

    page = Document()
    with ThreadPoolExecutor(1) as workers:
        make_page(page, catalogue, workers)
    assert "cannot be shown" in page.select_one({"name": "title"}).text
    page.select_one({"name": "points data"}).selected.indices = [0]
    page.select_one({"name": "choose points"}).value = "UMAP"
