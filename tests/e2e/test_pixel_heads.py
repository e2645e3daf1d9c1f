"""Heads that read pixels in a run: with an encoder beside them or without one, and what they could not read."""

import numpy as np
import pytest
import torch

import tilestream
from tests.e2e.test_heads import table
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given
from tilestream.errors import ConfigError
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

HEADS = {"red": {"kind": "classify", "input": "pixels", "model": "tests.support.heads:redness"}}


@pytest.fixture
def pixels():
    return make_image(500, 500, 1)


@pytest.fixture
def image(tmp_path, pixels):
    return write_pyramid(tmp_path / "a.tif", pixels, compression="deflate", levels=1, mpp=0.5)


def expected(pixels):
    """(n, 2) probabilities of all tiles of the image, white where they hang over."""
    whole = np.full((512, 512, 3), 255, np.uint8)
    whole[:500, :500] = pixels
    means = whole.reshape(8, 64, 8, 64, 3).mean(axis=(1, 3), dtype=np.float64)[..., 0].ravel() / 64
    return torch.softmax(torch.from_numpy(np.stack([2 - means, means], axis=1)), dim=1).numpy()


@pytest.mark.parametrize("encoder", ["tests.support.encoders:corners", None])
def test_pixels_are_classified_with_an_encoder_or_without(image, pixels, tmp_path, encoder):
    changes = {} if encoder else {"encoder": None, "pool": None}
    summary = tilestream.run(given(image, tmp_path / "out", heads=HEADS, **changes))
    assert summary.exit_code == 0
    found = table(tmp_path / "out")
    assert np.abs(found.obsm["red"] - expected(pixels)).max() < 1e-5
    assert (found.obs["red"] == np.where(expected(pixels).argmax(axis=1), "high", "low")).all()
    assert (found.X is None) == (encoder is None)
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() == []
    before = bytes_of(tmp_path / "out" / "a.zarr")
    more = {**HEADS, "second": HEADS["red"]}
    again = tilestream.run(given(image, tmp_path / "out", heads=more, **changes))
    assert (again.new_tiles, again.exit_code) == (0, 0)
    after = bytes_of(tmp_path / "out" / "a.zarr")
    assert {key for key, data in before.items() if after[key] != data and "tables" in key.parts} == {
        key for key in before if str(key) == "tables/tiles/obs/zarr.json"
    }


def test_the_bytes_do_not_depend_on_shards_of_the_run(image, tmp_path):
    rows = {}
    for shard in (16, 64):
        tilestream.run(given(image, tmp_path / str(shard), heads=HEADS, compute={"shard_tiles": shard}))
        rows[shard] = table(tmp_path / str(shard)).obsm["red"]
    assert np.array_equal(rows[16], rows[64])


def test_what_a_head_could_not_read_is_told_and_done_again_when_asked(tmp_path, pixels):
    path = write_pyramid(tmp_path / "a.tif", pixels, compression="jpeg", levels=1, mpp=0.5)
    data = path.read_bytes()
    place = len(data) // 2
    path.write_bytes(data[:place] + bytes(4000) + data[place + 4000 :])
    settings = given(path, tmp_path / "out", heads=HEADS, encoder=None, pool=None)
    summary = tilestream.run(settings)
    lacking = summary.slides[0].unanswered["red"]
    assert (summary.exit_code, lacking > 0) == (4, True)
    found = table(tmp_path / "out")
    nothing = np.isnan(found.obsm["red"]).all(axis=1)
    assert (nothing.sum(), set(found.obs["red"][nothing])) == (lacking, {"not computed"})
    assert tilestream.run(settings).exit_code == 4
    assert tilestream.run(settings, retry_failed=True).slides[0].unanswered == {"red": lacking}


def test_a_head_of_pixels_of_another_size_or_resolution_is_refused_with_both(image, tmp_path):
    heads = {"red": {**HEADS["red"], "size": 96}}
    with pytest.raises(ConfigError, match=r"heads.red.size: 96 px, but it classifies tiles, and tiles.size is 64"):
        tilestream.run(given(image, tmp_path / "out", heads=heads))
    heads = {"red": {**HEADS["red"], "mpp": 2.0}}
    refused = tilestream.run(given(image, tmp_path / "out", heads=heads))
    assert "was made for 2 µm/px, but level 0 of a has 0.5" in refused.slides[0].error
