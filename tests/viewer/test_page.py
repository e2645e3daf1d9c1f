"""The page: keys, its state in its address, room for the slide, and whether everybody can use it."""

import csv
import json

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from shapely.geometry import shape

from tests.support.stores import make_store
from tests.support.viewing import browsing, settled, until, viewed
from tilestream.viewer.drawing.regions import squares

pytestmark = pytest.mark.slow

STATE = "JSON.stringify(tilestream.panes.map((p) => [p.facts.id, p.key, p.marked, ...Object.values(p.looking()).map((v) => Math.round(v * 10))]))"


def test_keys_and_buttons_move_and_lay_layers(output):
    with browsing(output) as (page, _):
        whole = page.evaluate("pane().looking().z")
        page.keyboard.press("+")
        until(page, f"still() && pane().looking().z < {whole} * 0.7")
        page.keyboard.press("-")
        until(page, f"still() && Math.abs(pane().looking().z / {whole} - 1) < 0.01")
        page.get_by_role("button", name="10x").click()
        until(page, "still()")
        assert page.evaluate("pane().looking().z * pane().facts.mpp") == pytest.approx(1)  # µm a screen px
        assert page.locator("#power").inner_text() == "10x"
        x = page.evaluate("pane().looking().x")
        page.keyboard.press("ArrowRight")
        until(page, f"still() && pane().looking().x > {x} + 100")
        page.keyboard.press("Home")
        until(page, f"still() && Math.abs(pane().looking().z / {whole} - 1) < 0.01")
        keys = page.evaluate("pane().facts.layers.map((each) => each.key)")
        page.keyboard.press(str(keys.index("clusters") + 1))
        until(page, "pane().layer?.key == 'clusters'")
        page.keyboard.press("0")
        until(page, "!pane().layer")
        page.keyboard.press("o")
        assert not page.evaluate("pane().outlines")
        page.keyboard.press("p")
        assert page.locator("#side").is_visible()
        page.keyboard.press("?")
        assert page.locator("#keys").is_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("l")
        assert page.evaluate("tilestream.tool") == "lasso"
        page.keyboard.press("Escape")
        assert page.evaluate("tilestream.tool") == "move"


def test_the_address_restores_the_page_after_reload_back_and_elsewhere(output):
    with browsing(output) as (page, _):
        page.get_by_role("button", name="10x").click()
        until(page, "still()")
        tile = int(np.flatnonzero(viewed(output / "a.zarr").good)[3])
        page.evaluate(f"tilestream.ask(pane(), {tile})")
        until(page, "pane().layer?.nearest && location.hash.includes('similarity')")
        page.wait_for_timeout(900)  # what follows at once would be part of the same step
        first, address = page.evaluate(STATE), page.url
        page.keyboard.press("2")
        until(page, "pane().layer?.key == 'clusters' && location.hash.includes('clusters')")
        second = page.evaluate(STATE)
        page.reload()
        settled(page)
        until(page, "pane().layer?.key == 'clusters'")
        assert page.evaluate(STATE) == second
        page.go_back()
        until(page, "pane().layer?.key == 'similarity'")
        assert page.evaluate(STATE) == first
        other = page.context.browser.new_page(viewport=page.viewport_size)
        other.goto(address)
        settled(other)
        until(other, "pane().layer?.key == 'similarity'")
        assert other.evaluate(STATE) == first


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_the_slide_has_most_of_the_window_and_each_output_its_name(output, outputs):
    for size in ((1280, 720), (800, 600)):
        with browsing(*[output] * outputs, size=size) as (page, _):
            boxes = page.locator(".stage").all()
            assert len(boxes) == outputs
            for box in (each.bounding_box() for each in boxes):
                assert box["height"] >= 0.6 * size[1]
                assert box["width"] >= size[0] / outputs - 4
            words = page.locator(".head").all_inner_texts()
            assert all("tiles" in each for each in words)
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            page.keyboard.press("p")
            assert page.locator("#side").bounding_box()["x"] >= 0


COVERED = """() => [...document.querySelectorAll('#bar button, #tabs button')].filter((button) => button.offsetParent).filter((button) => {
  const box = button.getBoundingClientRect(), places = [[2, 2], [box.width - 2, 2], [box.width / 2, box.height / 2], [2, box.height - 2]];
  return places.some(([x, y]) => !button.contains(document.elementFromPoint(box.left + x, box.top + y)));
}).map((button) => button.textContent)"""
"""Names of buttons that something lies over."""


@pytest.mark.parametrize("size", [(1280, 800), (1000, 700), (800, 600), (640, 480), (360, 640)])
def test_what_is_said_covers_no_button(output, size):
    with browsing(output, size=size) as (page, _):
        page.mouse.click(*page.evaluate("at(1550, 1150)"))
        shown = set()
        for _ in range(2):
            page.keyboard.press("p")
            shown.add(page.locator("#tab-layers").is_visible())
            page.evaluate("document.querySelector('#say').textContent = 'The file holds no such place as that. '.repeat(4)")
            assert page.locator("#say").is_visible()
            assert page.evaluate(COVERED) == []
            box = page.locator("#say").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size[0]
        assert shown == {True, False}


def test_selections_are_kept_as_table_regions_and_labels(output, tmp_path):
    store = viewed(output / "a.zarr")
    with browsing(output) as (page, _):
        page.get_by_role("button", name="Box").click()
        left, top, right, bottom = 400, 300, 1700, 1400
        page.mouse.move(*page.evaluate(f"at({left}, {top})"))
        page.mouse.down()
        page.mouse.move(*page.evaluate(f"at({right}, {bottom})"), steps=4)
        page.mouse.up()
        half = store.l0_extent / 2
        y, x = store.y + half, store.x + half
        expected = np.flatnonzero((x > left) & (x < right) & (y > top) & (y < bottom))
        assert len(expected) > 4
        assert sorted(page.evaluate("pane().selected")) == expected.tolist()
        page.get_by_label("Class of the selection").fill("tumour")
        for name, file in (("CSV", "a-selection.csv"), ("GeoJSON", "a-tiles.geojson"), ("Labels for fit", "a.geojson")):
            with page.expect_download() as download:
                page.locator("#selection").get_by_role("button", name=name, exact=True).click()
            assert download.value.suggested_filename == file
            download.value.save_as(tmp_path / file)
    with (tmp_path / "a-selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tile"] for row in rows] == store.obs.index[expected].tolist()
    assert {row["class"] for row in rows} == {"tumour"}
    tiles = json.loads((tmp_path / "a-tiles.geojson").read_text())["features"]
    assert [each["properties"]["objectType"] for each in tiles] == ["tile"] * len(expected)
    (region,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert region["properties"]["classification"]["name"] == "tumour"
    whole = squares(store.y[expected], store.x[expected], store.l0_extent)
    assert shape(region["geometry"]).equals(whole)


def test_scatter_and_slide_point_at_the_same_tile(output):
    with browsing(output, state="#panel=scatter") as (page, _):
        until(page, "tilestream.scatter.points > 0")
        tile = int(np.flatnonzero(viewed(output / "a.zarr").good)[5])
        box = page.locator("#scatter canvas").bounding_box()
        x, y = page.evaluate(f"tilestream.scatter.at({tile})")
        page.mouse.move(box["x"] + x, box["y"] + y)
        near = page.evaluate("pane().hovered")
        assert (
            page.evaluate(f"((a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]))(tilestream.scatter.at({near}), tilestream.scatter.at({tile}))")
            < 3
        )
        page.mouse.click(box["x"] + x, box["y"] + y)
        until(page, f"pane().marked == {near} && pane().layer?.nearest && still()")
        view, half = page.evaluate("pane().looking()"), page.evaluate("pane().facts.l0_extent / 2")
        assert (view["x"], view["y"]) == pytest.approx(tuple(page.evaluate(f"[pane().places.tileX[{near}] + {half}, pane().places.tileY[{near}] + {half}]")), abs=2)  # fmt: skip


def test_geojson_of_others_and_columns_of_the_table_are_layers(tmp_path):
    make_store(tmp_path / "out" / "s.zarr", rows=8, cols=9, address=str(tmp_path / "gone.svs"))
    rows, cols = (each.ravel() for each in np.mgrid[:8, :9])
    with (tmp_path / "obs.csv").open("w") as file:  # as obs.to_csv() writes it
        print(
            ",score,kind",
            *(f's_{r}_{c},{k / 71},"k,{"abc"[k % 3]}"' for k, (r, c) in enumerate(zip(rows, cols, strict=True))),
            sep="\n",
            file=file,
        )
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [900, 0], [900, 900], [0, 0]]]},
              "properties": {"classification": {"name": "stroma", "color": [1, 2, 3]}}}  # fmt: skip
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    (tmp_path / "bad.geojson").write_text("{}")
    with browsing(tmp_path / "out", state="#panel=layers") as (page, _):
        page.get_by_label("GeoJSON or CSV to show").set_input_files(tmp_path / "obs.csv")
        until(page, "pane().layer?.key == 'csv: score'")
        codes = page.evaluate("[...pane().layer.codes]")
        assert codes[0] == 1
        assert codes[-1] == 255
        assert page.evaluate("pane().layer.picture !== undefined")
        page.get_by_label("csv: kind").check()
        until(page, "pane().layer?.legend.entries.length == 3")
        page.get_by_role("button", name="select k,b 24").click()
        assert page.evaluate("pane().selected") == list(range(1, 72, 3))
        page.get_by_role("tab", name="Layers").click()
        page.get_by_label("GeoJSON or CSV to show").set_input_files(tmp_path / "r.geojson")
        until(page, "pane().brought.length == 1")
        assert page.evaluate("pane().brought[0].colour") == [1, 2, 3]
        page.get_by_label("GeoJSON or CSV to show").set_input_files(tmp_path / "bad.geojson")
        until(page, "document.querySelector('#say').textContent.includes('cannot be shown')")


def test_nothing_serious_stands_in_anybodys_way(output, tmp_path):
    with browsing(output, options=["--annotations", str(tmp_path)]) as (page, _):
        for tab in ("", "layers", "similar", "scatter", "selection", "draw", "image"):
            page.evaluate(f"tilestream.setTab('{tab}')")
            if tab == "layers":
                page.keyboard.press("2")
                until(page, "pane().layer?.codes")
            if tab == "similar":
                page.evaluate("tilestream.ask(pane(), 3)")
                until(page, "document.querySelectorAll('#similar img').length > 3")
            if tab == "selection":
                page.evaluate("tilestream.choose(pane(), [1, 2, 3])")
            found = Axe().run(page).response["violations"]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == [], tab
        page.evaluate("tilestream.setTab(''); document.activeElement.blur()")
        reached = []
        for _ in range(14):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.textContent")
            )
        assert reached[:3] == ["out", "in", "home"]
        assert "fold" in reached
