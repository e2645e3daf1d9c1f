"""Drawing in the viewer: regions with classes as QuPath keeps them, and from there to a map of classes of the whole slide."""

import json

import numpy as np
import pytest
from scipy import ndimage
from shapely.geometry import Polygon, box, shape

import tilestream
from tests.support.stores import make_store
from tests.support.viewing import browsing, until, viewed
from tilestream.errors import ConfigError, InputError
from tilestream.sources.made.histology import KINDS
from tilestream.sources.made.slide import sample_labels
from tilestream.viewer.drawing.regions import Regions, squares
from tilestream.viewer.server import serve

SLIDE = "sample://he?width=12288&height=8192&seed=1"


def test_regions_are_kept_beside_what_the_file_held(tmp_path):
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"objectType": "annotation"}}
    old = {
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
        "properties": {"classification": {"name": "Stroma", "color": [1, 2, 3]}, "measurements": {"a": 1}},
    }  # fmt: skip
    path = tmp_path / "s.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [point, old]}))
    regions = Regions.open(path)
    assert regions.classes == ["Stroma"]
    regions.add("Tumour", squares(np.array([100, 100]), np.array([0, 50]), 50))
    assert regions.add("Tumour", box(0, 0, 0.1, 0.1)) is None
    regions.save()
    features = json.loads(path.read_text())["features"]
    assert old in features
    assert point in features
    new = next(feature for feature in features if feature not in (old, point))
    assert new["properties"]["objectType"] == "annotation"
    assert new["properties"]["classification"]["name"] == "Tumour"
    assert shape(new["geometry"]).symmetric_difference(box(0, 100, 100, 150)).area < 10
    again = Regions.open(path)
    again.remove([key for key, feature in again.features.items() if feature == old])
    again.save()
    assert old not in json.loads(path.read_text())["features"]


def test_a_line_that_crosses_itself_is_two_regions_and_a_foreign_file_is_refused(tmp_path):
    regions = Regions(tmp_path / "s.geojson")
    key = regions.add("a", Polygon([(0, 0), (10, 10), (10, 0), (0, 10)]))
    assert len(shape(regions.features[key]["geometry"]).geoms) == 2
    (tmp_path / "s.geojson").write_text("{}")
    with pytest.raises(InputError, match=r"s\.geojson is no GeoJSON of regions that can be drawn on"):
        Regions.open(tmp_path / "s.geojson")
    with pytest.raises(ConfigError, match="--annotations: 2 outputs are shown"):
        serve(["a", "b"], print, annotations=tmp_path)


def tissue_boxes(labels, cell, kind, reach):
    """Two boxes (left, top, right, bottom) in level-0 px within a kind of tissue, `reach` px or more apart, as large as may be."""
    free = labels == kind
    found = []
    for _ in range(2):
        depth = ndimage.distance_transform_cdt(np.pad(free, 1), metric="chessboard")[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        half = min(int(depth.max()) - 1, 14)
        found.append([(x - half) * cell, (y - half) * cell, (x + half + 1) * cell, (y + half + 1) * cell])
        gap = half + reach // cell
        free = free.copy()
        free[max(0, y - gap) : y + gap + 1, max(0, x - gap) : x + gap + 1] = False
    return found


@pytest.mark.slow
def test_from_an_unlabelled_slide_to_a_map_in_less_than_twenty_clicks(tmp_path):
    config = {
        "slides": SLIDE, "output": str(tmp_path / "out"), "tiles": {"size": 224, "mpp": 0.5, "tissue": "otsu"}, "pool": "none",
        "encoder": {"name": "tilestream-lite", "precision": "fp32"}, "compute": {"scheduler": "inline", "device": "cpu"},
    }  # fmt: skip
    assert tilestream.run(config).exit_code == 0
    path = next((tmp_path / "out").glob("*.zarr"))
    slide = viewed(path)
    labels, cell = sample_labels(SLIDE)
    clicks = 0
    with browsing(tmp_path / "out", options=["--annotations", str(tmp_path / "drawn")]) as (page, _):
        page.screenshot(path=tmp_path / "1-unlabelled.png")
        page.get_by_role("button", name="Panel").click()
        page.get_by_role("tab", name="Draw").click()
        clicks += 2
        until(page, "still()")
        for kind in range(1, len(KINDS)):
            page.get_by_label("New class").click()
            page.keyboard.type(KINDS[kind])
            page.keyboard.press("Enter")
            clicks += 1
            until(page, "(name) => document.querySelector('#draw input[type=radio]:checked')?.value === name", KINDS[kind])
            for left, top, right, bottom in tissue_boxes(labels, cell, kind, 3 * int(slide.l0_extent)):
                before = page.evaluate("pane().drawn.length")
                corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
                points = [page.evaluate(f"at({x}, {y})") for x, y in corners]
                page.mouse.move(*points[0])
                page.mouse.down()
                for at in points[1:]:
                    page.mouse.move(*at, steps=6)
                page.mouse.up()
                clicks += 1
                until(page, "(before) => pane().drawn.length > before", before)
        page.screenshot(path=tmp_path / "2-drawn.png")
    drawn = tmp_path / "drawn" / f"{path.stem}.geojson"
    assert len(json.loads(drawn.read_text())["features"]) == 10
    found = tilestream.fit(
        {
            "embeddings": str(tmp_path / "out"), "target": {"annotations": str(tmp_path / "drawn")}, "split": {"folds": 2},
            "head": {"name": "kind", "kind": "classify", "model": "linear"}, "save": str(tmp_path / "kind.safetensors"),
        }
    )  # fmt: skip
    assert "regions were held out, not patients" in found.evaluation.notes[0]
    config["heads"] = {"kind": {"kind": "classify", "model": str(tmp_path / "kind.safetensors")}}
    assert tilestream.run(config).exit_code == 0
    with browsing(tmp_path / "out", options=["--annotations", str(tmp_path / "drawn")]) as (page, _):
        page.get_by_role("button", name="Panel").click()
        page.get_by_label("classes: kind").click()
        clicks += 2
        until(page, "pane().layer?.picture && pane().legend.textContent.includes('lymphoid')")
        page.screenshot(path=tmp_path / "3-map.png")
    assert clicks < 20
    overlaps = intersections(tilestream.open(path), labels, cell)
    print(clicks, "clicks, IoU", overlaps, found.evaluation.metrics["accuracy"])
    assert np.mean(list(overlaps.values())) > 0.7


def intersections(slide, labels, cell):
    """Tiles of which a kind is both predicted and true, over those of which it is either, by kind; true is what covers most of a tile that is mostly tissue."""
    middles = [(np.arange(side) + 0.5) * cell for side in labels.shape]
    parts = []
    for y, x in slide.positions:
        rows, cols = ((axis >= start) & (axis < start + slide.l0_extent) for axis, start in zip(middles, (y, x), strict=True))
        parts.append(np.bincount(labels[np.ix_(rows, cols)].ravel(), minlength=len(KINDS)))
    parts = np.array(parts)
    true = np.where(parts[:, 0] * 2 < parts.sum(axis=1), 1 + parts[:, 1:].argmax(axis=1), 0)
    predicted = np.array([KINDS.index(name) for name in slide.obs["kind"].astype(str)])
    tissue = true > 0
    return {
        KINDS[k]: float(((true == k) & (predicted == k))[tissue].sum() / max(1, ((true == k) | (predicted == k))[tissue].sum()))
        for k in range(1, len(KINDS))
    }


@pytest.mark.slow
def test_polygons_brush_selected_tiles_undo_and_erase(tmp_path):
    make_store(tmp_path / "out" / "s.zarr", rows=8, cols=9, address=str(tmp_path / "gone.svs"))
    store = viewed(tmp_path / "out" / "s.zarr")
    path, side = tmp_path / "drawn" / "s.geojson", store.l0_extent

    def held():
        return json.loads(path.read_text())["features"]

    def at(x, y):
        return page.evaluate(f"at({x}, {y})")

    with browsing(tmp_path / "out", options=["--annotations", str(tmp_path / "drawn")], state="#panel=draw") as (page, _):
        assert not path.exists()
        page.get_by_label("New class").fill("tumour")
        page.get_by_label("New class").press("Enter")
        page.evaluate("pane().select([0, 1, 2])")
        page.get_by_role("tab", name="Selection").click()
        page.get_by_role("button", name="Add to drawing").click()
        until(page, "pane().drawn.length == 1")
        expected = squares(store.y[:3], store.x[:3], side)
        assert shape(held()[0]["geometry"]).symmetric_difference(expected).area < side

        page.get_by_role("tab", name="Draw").click()
        page.get_by_role("button", name="Polygon").click()
        corners = [(3 * side, 3 * side), (6 * side, 3 * side), (6 * side, 6 * side)]
        for x, y in corners:
            page.mouse.click(*at(x, y))
        page.keyboard.press("Enter")
        until(page, "pane().drawn.length == 2")
        assert shape(held()[1]["geometry"]).symmetric_difference(Polygon(corners)).area < side**2 / 20
        assert page.evaluate("pane().marked") == -1  # a corner is no question
        page.get_by_role("button", name="Undo").click()
        until(page, "pane().drawn.length == 1")

        page.get_by_role("button", name="Brush").click()
        for start, end in (((5, 5), (7, 5)), ((6, 5), (6, 7))):  # the second begins in the first, and joins it
            page.mouse.move(*at(start[0] * side, start[1] * side))
            page.mouse.down()
            page.mouse.move(*at(end[0] * side, end[1] * side), steps=5)
            page.mouse.up()
            until(page, "pane().drawn.length == 2 && !pane().line?.points[1]")
        until(page, "pane().drawn.some((each) => each.box[3] > 6.9 * 224 && each.box[2] > 6.9 * 224)")
        crossed = shape(held()[1]["geometry"])
        assert crossed.geom_type == "Polygon"
        page.get_by_role("button", name="Rub out").click()
        page.mouse.move(*at(5 * side, 6 * side))
        page.mouse.down()
        page.mouse.move(*at(7 * side, 6 * side), steps=5)
        page.mouse.up()
        until(page, "pane().drawn.some((each) => each.polygons.length > 1)")
        assert shape(held()[1]["geometry"]).area < crossed.area
        page.get_by_role("button", name="Undo").click()
        until(page, "pane().drawn.every((each) => each.polygons.length == 1)")
        assert shape(held()[1]["geometry"]).equals(crossed)

        page.get_by_role("button", name="Erase").click()
        for feature in held():
            inside = shape(feature["geometry"]).representative_point()
            page.mouse.click(*at(inside.x, inside.y))
        until(page, "pane().drawn.length == 0")
        assert held() == []
        assert "Nothing is drawn" in page.locator("#drawn").inner_text()
