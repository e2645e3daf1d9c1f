"""What lies in a hole is out, however the holes lie; judged ring by ring at the centres of pixels."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.config.schema import Tissue
from tilestream.tiles.annotations.cover import draw_tissue

SHAPE, DOWNSAMPLE = (60, 80), 10.0
BORDER = [[101, 99], [602, 98], [603, 501], [99, 502], [101, 99]]


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def drawn(folder, *polygons):
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "MultiPolygon", "coordinates": polygons}))
    return draw_tissue(path, Tissue(mask=str(path)), SHAPE, DOWNSAMPLE)[0]


def centres_in(ring):
    x, y = ((np.arange(n) + 0.5) * DOWNSAMPLE for n in SHAPE[::-1])
    return shapely.contains_xy(shapely.Polygon(ring), *np.meshgrid(x, y))


CASES = {
    "apart": [square(151, 151, 80), square(351, 151, 80)],
    "over one another": [square(151, 151, 200), square(251, 251, 200)],
    "one in the other": [square(151, 151, 300), square(201, 201, 100)],
    "twice the same": [square(151, 151, 200)] * 2,
    "over the border": [square(501, 401, 250)],
    "over the border and one another": [square(501, 401, 250), square(401, 351, 200)],
    "through the whole": [[[51, 201], [751, 201], [751, 301], [51, 301], [51, 201]]],
    "the border itself at one side": [square(101, 99, 100), square(301, 199, 100)],
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("holes", CASES.values(), ids=CASES)
def test_what_lies_in_any_hole_is_out(tmp_path, holes, turned):
    told = [hole[::-1] if turned else hole for hole in holes]
    expected = centres_in(BORDER) & ~np.logical_or.reduce([centres_in(hole) for hole in holes])
    np.testing.assert_array_equal(drawn(tmp_path, [BORDER, *told]), expected)


@pytest.mark.parametrize("holes", CASES.values(), ids=CASES)
def test_an_island_in_holes_is_in(tmp_path, holes):
    island = square(261, 261, 60)
    expected = centres_in(BORDER) & ~np.logical_or.reduce([centres_in(hole) for hole in holes]) | centres_in(island)
    np.testing.assert_array_equal(drawn(tmp_path, [BORDER, *holes], [island]), expected)


@pytest.mark.parametrize("holes", [[], [square(151, 151, 200), square(251, 251, 200)]])
def test_a_ring_beside_the_border_is_a_polygon_of_its_own(tmp_path, holes):
    beside, hole = square(651, 51, 100), square(671, 71, 40)
    inside = centres_in(BORDER) & ~np.logical_or.reduce([centres_in(hole) for hole in holes], initial=False)
    expected = inside | centres_in(beside) & ~centres_in(hole)
    np.testing.assert_array_equal(drawn(tmp_path, [BORDER, *holes, beside, hole]), expected)


corners = st.tuples(st.integers(12, 55), st.integers(12, 45), st.integers(3, 30))


@settings(max_examples=60, deadline=None)
@given(holes=st.lists(corners, min_size=1, max_size=6))
def test_any_holes_that_reach_into_the_border_are_out(tmp_path_factory, holes):
    rings = [square(10 * x + 1.3, 10 * y + 1.7, 10 * side) for x, y, side in holes]
    expected = centres_in(BORDER) & ~np.logical_or.reduce([centres_in(ring) for ring in rings])
    np.testing.assert_array_equal(drawn(tmp_path_factory.mktemp("drawn"), [BORDER, *rings], [square(0, 0, 15)])[2:, 2:], expected[2:, 2:])
