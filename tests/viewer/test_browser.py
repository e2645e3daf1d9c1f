"""The viewer in a browser: what a person sees and does."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.runs import embed
from tests.support.stores import make_store
from tests.support.viewing import browsing, files, viewed
from tilestream.errors import ConfigError, InputError
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.deepzoom import SIDE, Zoom
from tilestream.viewer.neighbours import nearest


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
        assert "no tissue found" in page.evaluate("tsModel('title').text")


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
