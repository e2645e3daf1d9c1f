"""What covers nothing among drawn regions is left out and told; a file of nothing else is refused. And GeoJSON of one feature a line."""

import gzip
import json

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tests.tiles.test_annotations import FAR, HOLE, RING, SHAPE, asap, centres_in, collection, feature, polygon, scope
from tilestream.config.schema import Tissue
from tilestream.errors import InputError
from tilestream.tiles.annotations import geojson
from tilestream.tiles.annotations.cover import draw_classes, draw_tissue, is_drawn
from tilestream.tiles.annotations.shapes import FLAT, covers_nothing, ring_from_corners

WITH_HOLE = shapely.Polygon(RING, [HOLE])
CLICK, TWO, LINE = [[150, 150]], [[150, 150], [400, 300], [150, 150]], [[110, 110], [210, 160], [310, 210], [110, 110]]
NO_GEOMETRY = "features without a geometry"
NOTHING = {
    "a click": (feature(polygon(CLICK)), {FLAT: 1}),
    "a click that is closed": (feature(polygon(CLICK * 4)), {FLAT: 1}),
    "two corners": (feature(polygon(TWO)), {FLAT: 1}),
    "corners on one line": (feature(polygon(LINE)), {FLAT: 1}),
    "a flat border with a hole": (feature(polygon(LINE, HOLE)), {FLAT: 1}),
    "no ring": (feature(polygon()), {FLAT: 1}),
    "an empty ring": (feature(polygon([])), {FLAT: 1}),
    "no polygon": (feature({"type": "MultiPolygon", "coordinates": []}), {FLAT: 1}),
    "several polygons": (feature({"type": "MultiPolygon", "coordinates": [[CLICK], [LINE], []]}), {FLAT: 3}),
    "a point": (feature({"type": "Point", "coordinates": [150, 150]}), {"Point": 1}),
    "points": (feature({"type": "MultiPoint", "coordinates": RING}), {"MultiPoint": 1}),
    "a line": (feature({"type": "LineString", "coordinates": RING}), {"LineString": 1}),
    "lines": (feature({"type": "MultiLineString", "coordinates": [RING]}), {"MultiLineString": 1}),
    "no geometry": (feature(None), {NO_GEOMETRY: 1}),
    "among geometries": (feature({"type": "GeometryCollection", "geometries": [polygon(TWO), {"type": "Point", "coordinates": []}]}), {FLAT: 1, "Point": 1}),
}  # fmt: skip


def told_of(counts):
    return "m.geojson: left out for covering nothing: " + ", ".join(f"{words} ({count})" for words, count in counts.items()) + "."


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("first", [True, False])
def test_what_covers_nothing_is_left_out_and_told(tmp_path, case, first):
    document, counts = NOTHING[case]
    features = [document, feature(polygon(RING, HOLE))]
    (tmp_path / "m.geojson").write_text(json.dumps(collection(*(features if first else features[::-1]))))
    mask, warnings = draw_tissue(tmp_path / "m.geojson", Tissue(), SHAPE, 10.0)
    assert np.array_equal(mask, centres_in(WITH_HOLE))
    assert warnings == (told_of(counts),)
    assert list(draw_classes(tmp_path / "m.geojson", SHAPE, 10.0)) == [""]


@pytest.mark.parametrize("case", NOTHING)
def test_a_file_of_nothing_else_is_refused(tmp_path, case):
    (tmp_path / "m.geojson").write_text(json.dumps(collection(NOTHING[case][0])))
    with pytest.raises(
        InputError, match=r"m\.geojson has no polygon, but what covers nothing: .*\(\d\)\. Draw the tissue, or choose classes"
    ):
        draw_tissue(tmp_path / "m.geojson", Tissue(), SHAPE, 10.0)


def test_flat_holes_cut_nothing_out_and_flat_parts_leave_the_others(tmp_path):
    document = collection(
        feature(polygon(RING, TWO, HOLE, CLICK)), feature({"type": "MultiPolygon", "coordinates": [[CLICK, HOLE], [FAR], [LINE]]})
    )
    (tmp_path / "m.geojson").write_text(json.dumps(document))
    mask, warnings = draw_tissue(tmp_path / "m.geojson", Tissue(), SHAPE, 10.0)
    assert np.array_equal(mask, centres_in(WITH_HOLE.union(shapely.Polygon(FAR))))
    assert warnings == (told_of({FLAT: 4}),)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (asap(("Polygon", "a", CLICK), ("Polygon", "a", RING), ("Spline", "a", LINE), ("Dot", "None", CLICK)), [f"{FLAT} (2)", "rulers (1)"]),
        (asap(("Polygon", "a", []), ("Polygon", "a", RING)), [f"{FLAT} (1)"]),
        (scope(("a", [(0, 0, RING), (0, 0, TWO), (0, 1, LINE), (1, 0, CLICK), (3, 0, FAR), (4, 0, TWO)])), [f"{FLAT} (3)", "rulers (2)"]),
        (scope(("b", [(2, 0, [])]), ("a", [(0, 0, RING), (1, 0, [[100, 100], [100, 400]])])), [f"{FLAT} (2)"]),
    ],
)  # fmt: skip
def test_the_same_holds_of_xml(tmp_path, text, counts):
    (tmp_path / "m.xml").write_text(text)
    mask, warnings = draw_tissue(tmp_path / "m.xml", Tissue(), SHAPE, 10.0)
    assert np.array_equal(mask, centres_in(shapely.Polygon(RING)))
    assert len(warnings) == 1
    assert all(words in warnings[0] for words in counts)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=6), st.integers(1, 10**7), st.integers(-(10**6), 10**6))
def test_a_ring_covers_nothing_where_its_hull_has_no_area(corners, scale, shift):
    moved = [[x * scale + shift, y * scale - shift] for x, y in corners]
    assert covers_nothing(ring_from_corners(moved, "here")) == (shapely.MultiPoint(moved).convex_hull.geom_type != "Polygon")


def test_a_ring_on_a_line_of_fractions_covers_nothing_and_a_thin_one_something():
    along = np.array([0.1, 0.7, 0.3, 1.0])[:, None] * [12345.678, 9876.543] + 54321.1
    assert covers_nothing(along)
    assert not covers_nothing(along + np.array([[0, 0], [0, 0.01], [0, 0], [0, 0]]))


FEATURES = [feature(polygon(RING, HOLE), "Tumor"), feature(None), feature(polygon(FAR), 'é "x" }{')]


@pytest.mark.parametrize("mark", ["", "\x1e", "\x1e\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("name", ["m.geojsonl", "m.geojsons", "m.ndjson", "m.json", "m.GeoJSON", "m.geojsonl.gz"])
def test_features_on_a_line_each_are_the_same_as_in_a_collection(tmp_path, monkeypatch, mark, end, name):
    monkeypatch.setattr(geojson, "CHUNK", 50)
    text = end.join(mark + json.dumps(each, ensure_ascii=False) for each in FEATURES) + end
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    (tmp_path / "whole.geojson").write_text(json.dumps(collection(*FEATURES)))
    drawn, whole = (draw_classes(tmp_path / each, SHAPE, 10.0) for each in (name, "whole.geojson"))
    assert is_drawn(tmp_path / name)
    assert list(drawn) == list(whole) == ["Tumor", 'é "x" }{']
    assert np.array_equal(drawn["Tumor"], centres_in(WITH_HOLE))
    assert all(np.array_equal(drawn[each], whole[each]) for each in whole)


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("[]", r"expected the end of the file, found \["),
        ("x", "expected the end of the file, found x"),
        ('{"type": "Feature", "geom', "is not JSON"),
        ("{", "expected a key"),
        ("\x1ex", "expected the end of the file, found x"),
        ("\x1e{}", "an empty object is no GeoJSON"),
        ('{"type": "Circle"}', "feature 4: is neither a feature nor a geometry"),
    ],
)
def test_a_line_that_is_no_feature_is_refused_with_its_place(tmp_path, tail, words):
    (tmp_path / "m.geojsonl").write_text("".join(f"{json.dumps(each)}\n" for each in FEATURES) + tail)
    with pytest.raises(InputError, match=rf"m\.geojsonl.*{words}"):
        draw_tissue(tmp_path / "m.geojsonl", Tissue(), SHAPE, 10.0)
