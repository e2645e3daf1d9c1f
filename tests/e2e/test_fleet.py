"""Hosts that share nothing but a network: whichever of them goes away, no slide is lost and none is done twice."""

import pytest

import tilestream
from benchmarks.bench_fleet import ENCODER, SCENARIOS, TILES, measure
from tests.support.fleet import fleet, make_slides
from tests.support.hosts import why_not

SLIDES = 8

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    make_slides(folder / "slides", SLIDES, 1024)
    given = {"path": str(folder / "local"), "save": ["tiles", "slide"]}
    sections = {"tiles": TILES, "encoder": ENCODER, "pool": "mean", "compute": {"scheduler": "inline"}}
    assert tilestream.run({"slides": str(folder / "slides"), "output": given, **sections}).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def cluster(place):
    with fleet(place, place / "slides") as made:
        yield made


@pytest.mark.parametrize(("name", "codes"), [("calm", [[0]]), ("host", [[0]]), ("store", [[0]]), ("client", [[-9, 0]]), ("lost", [[5, 0]])])
def test_an_output_ends_equal_to_a_local_one_whoever_goes_away(cluster, place, name, codes):
    row = measure(cluster, name, SLIDES, 3.0, place / "local")
    words = "\n".join(row["words"])
    assert row["different"] == []
    assert row["exit_codes"] in (codes if SCENARIOS[name] is None else [*codes, [0]]), words  # where all was done before it came to that
    assert "Traceback" not in words
    if name == "calm":
        assert row["requests_a_slide"] <= 200
        assert row["slides_requests"] * 64 <= 10
