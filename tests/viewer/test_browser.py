"""The viewer in a browser: what a person sees and does."""

import shutil

import numpy as np
import pytest

from tests.support.runs import embed
from tests.support.stores import make_store
from tests.support.viewing import browsing, files, until, viewed
from tilestream.errors import ConfigError, InputError
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.neighbours import nearest
from tilestream.viewer.overlays import similarity_layer
from tilestream.viewer.web.facts import slide_told

PIXEL = """([x, y]) => { const p = pane(), see = p.view(), fine = devicePixelRatio;
  return [...p.canvas.getContext('2d').getImageData(Math.round(see.x(x) * fine), Math.round(see.y(y) * fine), 1, 1).data] }"""
"""Colours of the canvas over the slide at a place in level-0 px."""


@pytest.mark.slow
def test_a_person_zooms_clicks_selects_and_groups(output):
    store = viewed(output / "a.zarr")
    before = files(output)
    half = store.l0_extent / 2
    with browsing(output) as (page, asked):
        page.mouse.move(*page.evaluate("at(1550, 1150)"))
        asked.clear()
        for _ in range(3):
            page.mouse.wheel(0, -400)
        until(page, "still()")
        assert {int(url.split("/")[5]) for url in asked if "/tiles/" in url}

        page.keyboard.press("Home")
        until(page, "still()")
        tile = int(np.flatnonzero(store.good)[len(store.good) // 2])
        page.mouse.click(*page.evaluate(f"at({store.x[tile] + half}, {store.y[tile] + half})"))
        until(page, "pane().layer?.nearest && document.querySelectorAll('#similar img').length >= 12")
        x = np.asarray(store.embeddings[:], np.float64)
        expected = x @ x[tile] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[tile])
        told = page.evaluate("pane().layer.nearest")
        own, order = [each["tile"] for each in told], nearest(expected.astype(np.float32), len(told), tile)
        np.testing.assert_allclose(expected[own], expected[order], atol=1e-5)
        assert told[0]["cosine"] == pytest.approx(expected[order[0]], abs=1e-4)
        codes = np.array(page.evaluate("[...pane().layer.codes]"))
        assert np.abs(codes - similarity_layer(expected.astype(np.float32)).codes.astype(int)).max() <= 1

        page.get_by_role("tab", name="Scatter").click()
        until(page, "tilestream.scatter.points > 0")
        box = page.locator("#scatter canvas").bounding_box()
        corners = [(2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2), (2, box["height"] - 2)]
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        page.mouse.down()
        for across, down in corners:
            page.mouse.move(box["x"] + across, box["y"] + down, steps=4)
        page.mouse.up()
        assert sorted(page.evaluate("pane().selected")) == np.flatnonzero(store.good).tolist()
        page.keyboard.press("Escape")
        assert page.evaluate("pane().selected") == []

        page.get_by_role("tab", name="Layers").click()
        page.get_by_label("clusters").first.check()
        until(page, "pane().layer?.key == 'clusters'")
        assert page.evaluate("new Set(pane().layer.codes.filter((code) => code)).size") == 6
        page.evaluate("pane().outlines = false; pane().opacity = 1; pane().recolour()")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        palette, codes = page.evaluate("[pane().layer.palette, [...pane().layer.codes]]")
        for each in np.flatnonzero(store.good)[::7]:
            if each != tile:
                assert page.evaluate(PIXEL, [float(store.x[each] + half), float(store.y[each] + half)]) == palette[codes[each]]
    assert files(output) == before


@pytest.mark.slow
def test_neighbours_lead_to_their_places_and_panes_of_one_view_move_together(output):
    store = viewed(output / "a.zarr")
    with browsing(output, output) as (page, _):
        assert page.evaluate("tilestream.linked")  # slides of one size
        page.get_by_role("button", name="20x").click()
        until(page, "still() && still(1)")
        until(page, "Math.abs(pane(0).looking().x - pane(1).looking().x) < 1")
        tile = int(np.flatnonzero(store.good)[0])
        page.evaluate(f"tilestream.ask(pane(), {tile})")
        page.get_by_role("button", name="Panel").click()
        page.get_by_role("tab", name="Similar").click()
        page.locator("#similar button[data-slide='1']").first.click()
        until(page, "pane().number == 1 && pane().layer && still()")
        other, found = viewed(output / "b.zarr"), page.evaluate("pane().marked")
        half = other.l0_extent / 2
        view = page.evaluate("pane().looking()")
        assert (view["y"], view["x"]) == pytest.approx((other.y[found] + half, other.x[found] + half), abs=2)


@pytest.mark.slow
def test_the_sample_slide_opens_with_the_encoder_of_the_package(tmp_path):
    tiles = {"mpp": 0.5, "level": None, "tissue": "otsu"}
    embed("sample://he?width=4096&height=4096&seed=0", tmp_path, encoder="tilestream-tiny", tiles=tiles)
    store = viewed(next(tmp_path.glob("*.zarr")))
    tile = int(np.flatnonzero(store.good)[7])
    with browsing(tmp_path, state="#panel=scatter") as (page, asked):
        until(page, f"tilestream.scatter.points == {store.good.sum()}")
        half = store.l0_extent / 2
        page.mouse.click(*page.evaluate(f"at({store.x[tile] + half}, {store.y[tile] + half})"))
        until(page, f"pane().layer?.codes.filter((code) => code).length == {store.good.sum()}")
        assert any("/crops/0/" in url for url in asked)


@pytest.mark.slow
def test_every_kind_of_output_opens(output, tmp_path):
    make_store(tmp_path / "gone.zarr", rows=8, cols=9, address=str(tmp_path / "gone.svs"), failed=[3])
    with browsing(tmp_path, state="#panel=layers") as (page, _):
        assert "stored thumbnail is shown" in page.evaluate("pane().head.textContent")
        assert "1 failed" in page.evaluate("pane().head.textContent")
        page.get_by_label("status of tiles").check()
        until(page, "pane().layer?.codes.length == 72")
    shutil.rmtree(tmp_path / "gone.zarr")
    store = make_store(tmp_path / "part.zarr", rows=30, cols=30, finish=False)
    store.folder.delete(".tilestream/shards/tiles-000001.json")
    with browsing(tmp_path) as (page, _):
        assert "388 tiles to come" in page.evaluate("pane().head.textContent")
    shutil.rmtree(tmp_path / "part.zarr")
    make_store(tmp_path / "none.zarr", keep=np.zeros((4, 5), bool))
    with browsing(tmp_path) as (page, _):
        assert "no tissue found" in page.evaluate("pane().head.textContent")


def test_a_slide_without_embeddings_is_refused_by_name(tmp_path):
    store = make_store(tmp_path / "s.zarr", finish=False)
    store.drop(["tables/tiles/X"])
    store.complete({})
    with pytest.raises(InputError, match="holds no embeddings"):
        viewed(tmp_path / "s.zarr")
    catalogue = Catalogue([str(tmp_path)])
    assert "holds no embeddings" in catalogue.problem(0)
    assert "holds no embeddings" in slide_told(catalogue, 0)["problem"]
    with pytest.raises(ConfigError, match="--slide: t is in none"):
        Catalogue([str(tmp_path)], "t")
