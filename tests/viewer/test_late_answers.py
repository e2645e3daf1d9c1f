"""Answers that come late: what was asked for last is what is shown, whatever comes when."""

import json
import re

import numpy as np
import pytest

from tests.support.viewing import browsing, until, viewed
from tilestream.viewer.neighbours import similarity
from tilestream.viewer.overlays import similarity_layer, status_layer

pytestmark = pytest.mark.slow

CODES = "[...pane().layer.codes]"


class Held:
    """Requests of a page, kept until a test lets them go on."""

    def __init__(self, page, pattern, method="GET"):
        self.page, self.routes, self.over = page, [], set()
        page.route(re.compile(pattern), lambda route: self.routes.append(route) if route.request.method == method else route.continue_())
        for event in ("requestfinished", "requestfailed"):
            page.on(event, self._end)

    def _end(self, request):
        self.over.add(request)

    def frame(self):
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def wait(self, count):
        """Until so many have come."""
        while len(self.routes) < count:
            self.frame()

    def end(self, place, **answer):
        """Let one go on, or answer it, and wait until the page has got it, if it still wants it."""
        route = self.routes[place]
        if route.request not in self.over:
            route.fulfill(**answer) if answer else route.continue_()
        while route.request not in self.over:
            self.frame()
        self.frame()


def test_of_tiles_that_are_clicked_quickly_the_last_one_counts(output):
    store = viewed(output / "a.zarr")
    first, second = (int(tile) for tile in np.flatnonzero(store.good)[[2, 40]])
    with browsing(output) as (page, _):
        held = Held(page, r"/layer\?key=similarity")
        for k, tile in enumerate((first, second)):
            page.evaluate(f"void tilestream.ask(pane(), {tile})")
            held.wait(k + 1)
        held.end(1)
        until(page, "pane().layer?.nearest")
        held.end(0)
        expected = [similarity_layer(similarity(store, store.embedding(tile))).codes.astype(int) for tile in (first, second)]
        assert page.evaluate("pane().marked") == second
        codes = np.array(page.evaluate(CODES))
        assert np.abs(codes - expected[1]).max() <= 1
        assert np.abs(codes - expected[0]).max() > 1


def test_a_tile_among_the_neighbours_is_asked_for_too_so_that_the_colours_are_of_the_mark(output):
    store = viewed(output / "a.zarr")
    with browsing(output) as (page, _):
        page.evaluate(f"tilestream.ask(pane(), {int(np.flatnonzero(store.good)[2])})")
        page.locator("#similar button[data-slide='0']").nth(1).click()
        until(page, "pane().layer && !pane().layers.waits")
        marked = page.evaluate("pane().marked")
        expected = similarity_layer(similarity(store, store.embedding(marked))).codes.astype(int)
        assert np.abs(np.array(page.evaluate(CODES)) - expected).max() <= 1


def test_another_number_of_clusters_takes_the_place_of_the_one_that_is_still_computed(output):
    with browsing(output, state="#panel=layers") as (page, _):
        held = Held(page, r"/layer\?key=clusters")
        page.get_by_label("clusters").first.check()
        held.wait(1)
        page.locator("#layers input[max='20']").fill("3")
        held.wait(2)
        assert "clusters" in page.locator(".legend").inner_text()  # named while it loads, without colours of another
        assert page.evaluate("pane().layer") is None
        held.end(1)
        until(page, "pane().layer?.codes")
        held.end(0)
        assert page.evaluate("pane().layer.legend.entries.length") == 3
        assert page.locator("#layers .entry").count() == 3


def test_a_layer_of_the_slide_before_is_not_laid_over_the_next(output):
    store = viewed(output / "b.zarr")
    with browsing(output) as (page, _):
        held = Held(page, r"/slides/0/layer")
        page.evaluate("tilestream.chooseLayer('status')")
        held.wait(1)
        page.locator(".head select").select_option("b")
        until(page, "pane().facts.id == 'b' && pane().layer")
        held.end(0)
        assert page.evaluate(CODES) == status_layer(store.status).codes.tolist()


@pytest.mark.parametrize("what", [r"/slides/1\.json", "/slides/1/places"])
def test_of_slides_that_are_chosen_quickly_the_last_one_is_shown(output, what):
    with browsing(output) as (page, _):
        held = Held(page, what)
        page.locator(".head select").select_option("b")
        held.wait(1)
        assert page.evaluate("[pane().number, pane().facts.id]") == [0, "a"]  # until the other is here, all is of this one
        assert page.evaluate("pane().places.tiles == pane().facts.tiles")
        page.evaluate("tilestream.showSlide(pane(), 0, { tile: 5 })")
        held.end(0)
        assert page.evaluate("[pane().number, pane().facts.id, pane().marked]") == [0, "a", 5]
        assert page.locator(".head select").input_value() == "0"
        assert page.evaluate("pane().osd.world.getItemCount()") == 1


def test_two_slides_at_once_leave_the_picture_of_the_second_alone(output):
    with browsing(output) as (page, _):
        page.evaluate("Promise.all([1, 0, 1].map((number) => tilestream.showSlide(pane(), number)))")
        urls = page.evaluate(
            "Array.from({ length: pane().osd.world.getItemCount() }, (_, k) => pane().osd.world.getItemAt(k).source.getTileUrl(0, 0, 0))"
        )
        assert urls == ["tiles/1/0/0/0.jpg"]


def test_errors_are_said_while_somebody_waits_and_then_nothing_is_named_that_is_not_shown(output):
    with browsing(output, state="#panel=layers") as (page, _):
        held = Held(page, r"/layer\?key=mask")
        page.get_by_label("tissue mask").check()
        held.wait(1)
        page.get_by_label("status of tiles").check()
        until(page, "pane().layer?.key == 'status'")
        held.end(0, body="cut off")
        assert page.locator("#say").inner_text() == ""
        assert page.evaluate("pane().key") == "status"
        page.get_by_label("tissue mask").check()
        held.wait(2)
        held.end(1, body="cut off")
        assert page.locator("#say").inner_text() != ""
        assert page.get_by_label("nothing").is_checked()
        until(page, "!location.hash.includes('mask')")


def test_of_two_places_in_the_history_the_last_one_is_restored(output):
    with browsing(output) as (page, _):
        held = Held(page, r"/slides/\d/layer")
        for k, key in enumerate(("status", "mask")):
            page.evaluate(f"location.hash = '#panel=layers&k={k + 3}&pane=a,,,,{key},-1,'")
            held.wait(k + 1)
        held.end(1)
        until(page, "pane().layer?.key == 'mask'")
        held.end(0)
        assert page.evaluate("[pane().key, pane().layer.key, tilestream.k]") == ["mask", "mask", 4]
        page.evaluate("tilestream.chooseLayer('')")
        until(page, "!location.hash.includes('mask')")  # and what is done now is kept again


def test_points_of_the_slide_before_are_not_scattered(output):
    good = int(viewed(output / "b.zarr").good.sum())
    with browsing(output, state="#panel=layers") as (page, _):
        held = Held(page, r"/slides/0/points")
        page.get_by_role("tab", name="Scatter").click()
        held.wait(1)
        page.locator(".head select").select_option("b")
        until(page, "tilestream.scatter.points > 0")
        before = page.evaluate("tilestream.scatter.at(5)")
        held.end(0)
        assert page.evaluate("tilestream.scatter.points") == good
        assert page.evaluate("tilestream.scatter.at(5)") == before


def test_what_is_drawn_is_kept_in_its_order_and_shown_on_its_own_slide(output, tmp_path):
    with browsing(output, options=["--annotations", str(tmp_path)]) as (page, _):
        until(page, "document.querySelector('#drawn').textContent")
        held = Held(page, r"/slides/0/regions", "POST")
        for k in range(2):
            page.evaluate(f"tilestream.labelTiles(pane(), [{7 * k}], 'kind {k}')")
        held.wait(1)
        held.frame()
        assert len(held.routes) == 1  # the second waits for the answer to the first
        held.end(0)
        held.wait(2)
        assert page.evaluate("pane().drawn.map((each) => each.class)") == ["kind 0"]
        page.evaluate("void tilestream.showSlide(pane(), 1)")
        until(page, "pane().number == 1")
        held.end(1)
        until(page, "document.querySelector('#drawn').textContent.startsWith('Nothing is drawn')")
        assert page.evaluate("pane().drawn") == []
        assert page.locator("#undo").is_disabled()
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [each["properties"]["classification"]["name"] for each in features] == ["kind 0", "kind 1"]
    assert not (tmp_path / "b.geojson").exists()


def test_a_file_that_is_read_while_the_slide_changes_is_not_laid_over_the_next(output, tmp_path):
    (tmp_path / "obs.csv").write_text("slide,y,x,score\n" + "".join(f"{slide},0,0,1\n" for slide in "ab"))
    with browsing(output, state="#panel=layers") as (page, _):
        page.evaluate("""() => { const text = Blob.prototype.text; Blob.prototype.text = async function () {
          await new Promise((done) => (window.go = done)); return text.call(this) } }""")
        page.get_by_label("GeoJSON or CSV to show").set_input_files(tmp_path / "obs.csv")
        until(page, "window.go")
        page.evaluate("tilestream.showSlide(pane(), 1)")
        page.evaluate("go()")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate("[pane().own.size, document.querySelector('#say').textContent]") == [0, ""]
