"""The first slide is looked at while workers start, and what was seen of it counts only while its file stays the same."""

import shutil

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.config.load import load_config
from tilestream.runner import cohort, slide_plan
from tilestream.runner.cohort import list_cohort, see_first


@pytest.fixture
def slide(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(256, 320, seed=1), tile=64, levels=2, compression=None)


def first_of(slide, output, **sections):
    checked = load_config(config(slide, output, **sections))
    listed = list_cohort(checked)
    return see_first(listed, checked, listed.refs).result(60)


@pytest.fixture
def with_driver(monkeypatch):
    monkeypatch.setattr(cohort, "has_driver", lambda: True)


AUTO = {"compute": {"scheduler": "inline", "device": "auto"}}


@pytest.mark.usefixtures("with_driver")
def test_what_was_seen_is_what_planning_finds(slide, tmp_path):
    seen = first_of(slide, tmp_path / "out", **AUTO)
    found = tilestream.find_tiles(tilestream.open_image(slide), size=224, level=0, tissue="none")
    assert np.array_equal(seen.tiles.positions, found.positions)
    assert seen.picture.startswith(b"\x89PNG")


@pytest.mark.usefixtures("with_driver")
@pytest.mark.parametrize(
    "sections",
    [
        {"tiles": {"size": 64, "level": 0, "tissue": "tests.runner.test_see_first:never"}},
        {"compute": {"scheduler": "inline", "device": "cpu"}},
        {"source": {"stage": "copies"}},
    ],
)
def test_nothing_is_seen_ahead_where_that_would_not_do(slide, tmp_path, sections):
    assert first_of(slide, tmp_path / "out", **AUTO | sections) is None


def never(_pixels, _um_per_px):
    raise AssertionError("a function of the user's is called in its turn, not ahead")


@pytest.mark.usefixtures("with_driver")
def test_a_broken_slide_is_refused_in_its_turn(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0" + bytes(100))
    assert first_of(tmp_path / "broken.tif", tmp_path / "out", **AUTO) is None
    summary = tilestream.run(config(tmp_path / "broken.tif", tmp_path / "out", **AUTO))
    assert [result.status for result in summary.slides] == ["refused"]


def rows_of(output):
    return np.asarray(tilestream.open(output / "a.zarr").embeddings[:])


@pytest.mark.usefixtures("with_driver")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_slide_that_is_replaced_once_it_was_seen_is_planned_anew(slide, tmp_path, monkeypatch, replaced):
    """The other image is larger: tiles of the first one would leave a part of it out."""
    (tmp_path / "other").mkdir()
    other = write_pyramid(tmp_path / "other" / "a.tif", make_image(384, 320, seed=2), tile=64, levels=2, compression=None)
    tilestream.run(config(other if replaced else slide, tmp_path / "wanted", **AUTO))
    looked, used = cohort.see_first, []

    def see_then_replace(*arguments):
        found = looked(*arguments)
        assert found.result(60) is not None
        if replaced:
            shutil.copyfile(other, tmp_path / "new.tif")
            (tmp_path / "new.tif").replace(slide)
        return found

    see = slide_plan.see_slide
    monkeypatch.setattr("tilestream.runner.driver.see_first", see_then_replace)
    monkeypatch.setattr(slide_plan, "see_slide", lambda *arguments: used.append(arguments) or see(*arguments))
    tilestream.run(config(slide, tmp_path / "out", **AUTO))
    assert len(used) == 1 + replaced
    assert np.array_equal(rows_of(tmp_path / "out"), rows_of(tmp_path / "wanted"))
