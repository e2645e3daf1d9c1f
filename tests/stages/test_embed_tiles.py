"""What becomes of a tile's numbers: in range they are a row, beyond it the tile has failed, by name."""

import numpy as np
import pytest

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed, opened
from tilestream.stages.embed_tiles import place_results
from tilestream.stages.encoding.embedded import Embedded
from tilestream.store.layout import NONFINITE, OK


@pytest.mark.parametrize("bad", [70_000.0, -70_000.0, np.inf, -np.inf, np.nan])
def test_a_token_beyond_the_stored_type_fails_its_tile_alone(bad):
    out = np.ones((3, 4, 2), np.float32)
    out[1, 0, 0], out[1, 1, 0] = bad, -bad  # the mean of finite ones is in range
    vectors, tokens = np.full((3, 2), np.nan, np.float16), np.zeros((3, 4, 2), np.float16)
    status, errors = np.full(3, OK, np.int8), {}
    place_results(Embedded(np.arange(3), out, {}), vectors, tokens, status, errors)
    assert status.tolist() == [OK, NONFINITE, OK]
    assert list(errors) == [1]
    assert "float16" in errors[1]
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, True]
    assert np.isfinite(tokens).all()


def test_tokens_that_nobody_keeps_count_by_their_mean():
    out = np.array([[[70_000.0], [-70_000.0]]], np.float32)
    vectors, status, errors = np.full((1, 1), np.nan, np.float16), np.full(1, OK, np.int8), {}
    place_results(Embedded(np.arange(1), out, {}), vectors, None, status, errors)
    assert (status.tolist(), vectors.tolist(), errors) == ([OK], [[0.0]], {})


@pytest.mark.parametrize("save", [["tiles"], ["tiles", "tokens"]], ids=["one_pass", "stored"])
def test_a_token_out_of_range_leaves_its_neighbours_a_context(tmp_path, save):
    path = write_pyramid(tmp_path / "a.tif", make_image(448, 448, 3), tile=64, levels=1, mpp=0.5)
    summary = embed(
        path, tmp_path / "out", encoder="tests.support.encoders:one_huge_token", tiles={"size": 112},
        output={"path": str(tmp_path / "out"), "dtype": "float16", "save": save},
        context={"window": 4, "depth": 2, "heads": 2},
    )  # fmt: skip
    store = opened(tmp_path / "out", "a")
    failed = store.obs["status"] == "nonfinite"
    assert summary.exit_code == 4
    assert 0 < failed.sum() < len(failed)
    assert np.array_equal(np.isnan(store.context[:]).any(axis=1), failed)
