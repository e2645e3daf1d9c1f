"""Vectors of windows and slides, and an output that keeps only what was asked for."""

import anndata
import numpy as np
import pytest
import torch
import zarr

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed, opened
from tilestream.errors import ConfigError
from tilestream.models.context_streaming import TokenBand
from tilestream.models.pooling import make_pool
from tilestream.stages.region_vectors import WindowVectors, pool_rows

CORNERS = "tests.support.encoders:corners"
TOKENS = {"name": "patch_embed", "args": {"dim": 32}}
CONTEXT = {"window": 4, "depth": 2, "heads": 4, "exact": True}


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(800, 700, 5), tile=256, levels=1)


def tiles(size=96):
    return {"size": size, "level": 0, "tissue": "none"}


@pytest.mark.parametrize("name", ["mean", "max", "gated_attention", "queries"])
@pytest.mark.parametrize("cuts", [[64], [3, 5, 20, 21, 64], list(range(1, 65))])
def test_window_vectors_do_not_depend_on_bands_and_equal_the_pool_of_each_window(name, cuts):
    rng = np.random.default_rng(0)
    there = rng.random((64, 40)) < 0.4
    there[16:32] = False
    row, col = (torch.from_numpy(a) for a in np.nonzero(there))
    tokens = torch.from_numpy(rng.normal(size=(len(row), 8)).astype(np.float32))
    pool, seen, start = make_pool(name, 8), {}, 0
    vectors = WindowVectors(16, 3, pool, seen.__setitem__, 0, 4)
    for cut in cuts:
        part = (row >= start) & (row < cut)
        vectors.add(TokenBand(tokens[part], row[part], col[part], cut))
        start = cut
    vectors.finish()
    assert list(seen) == [0, 1, 2, 3]
    for r, values in seen.items():
        for c in range(3):
            inside = (row // 16 == r) & (col // 16 == c)
            expected = pool.result(pool.state(tokens[inside])).float().numpy()
            np.testing.assert_array_equal(values[c], expected)


def test_windows_of_windows_pool_those_that_are_not_empty():
    rows = [np.full((5, 2), float(k), np.float32) for k in range(4)]
    rows[1][:] = np.nan
    rows[2][4] = rows[3][4] = np.nan
    found = list(pool_rows(rows, 2, make_pool("mean", 2)))
    np.testing.assert_array_equal(np.stack(found)[..., 0], [[0, 0, 0], [2.5, 2.5, np.nan]])


def test_windows_of_tile_vectors(image, tmp_path):
    embed(image, tmp_path / "out", encoder=CORNERS, tiles=tiles(), output={"save": ["tiles", "windows"]}, windows={"sides": [2, 4]})
    store = opened(tmp_path / "out", "a")
    small, large = store.windows(2), store.windows(4)
    assert (small.shape, large.shape) == ((5, 4, 12), (3, 2, 12))
    obs, x = store.obs, store.embeddings[:]
    for r, c in ((0, 0), (4, 3), (2, 1)):
        inside = (obs["row"] // 2 == r) & (obs["col"] // 2 == c)
        np.testing.assert_allclose(small[r, c], x[inside].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(large[0, 0], small[:2, :2].reshape(4, -1).mean(axis=0), rtol=1e-6)
    assert small.attrs["side_l0_px"] == 192


@pytest.mark.parametrize("schedule", ["dense", "row_bands"])
def test_windows_of_patch_tokens_are_those_of_the_context(image, tmp_path, schedule):
    save = ["tiles", "windows"]
    sections = {"encoder": TOKENS, "tiles": tiles(), "windows": {"sides": [6, 12]}, "output": {"save": save}}
    embed(image, tmp_path / "out", context=CONTEXT | {"schedule": schedule}, compute={"shard_tiles": 20}, **sections)
    store = opened(tmp_path / "out", "a")
    obs = store.obs
    np.testing.assert_allclose(
        store.windows(6)[:][obs["row"], obs["col"]], store.context[:], rtol=1e-5, atol=1e-6
    )  # a tile is 6 x 6 tokens


def test_window_rows_that_are_missing_come_out_the_same_again(image, tmp_path):
    sections = {
        "encoder": TOKENS,
        "tiles": tiles(),
        "windows": {"sides": [5]},
        "output": {"save": ["tiles", "windows"]},
        "context": CONTEXT,
    }
    embed(image, tmp_path / "out", compute={"shard_tiles": 20}, **sections)
    before = opened(tmp_path / "out", "a").windows(5)[:]
    folder = tmp_path / "out" / "a.zarr" / ".tilestream"
    (folder / "complete.json").unlink()
    for row in (4, 5, 9):
        (folder / "shards" / f"windows5-{row:06d}.json").unlink()
        (tmp_path / "out" / "a.zarr" / "windows" / "5" / "c" / str(row) / "0" / "0").unlink()
    embed(image, tmp_path / "out", compute={"shard_tiles": 20}, **sections)
    np.testing.assert_array_equal(opened(tmp_path / "out", "a").windows(5)[:], before)


@pytest.mark.parametrize(
    ("context", "words"), [(None, "there is no context"), (CONTEXT | {"schedule": "halo_shards"}, "context.schedule: halo_shards")]
)
def test_windows_of_patch_tokens_need_a_context_in_order(image, tmp_path, context, words):
    with pytest.raises(ConfigError, match=words):
        embed(image, tmp_path / "out", encoder=TOKENS, tiles=tiles(), output={"save": ["windows"]}, context=context)


@pytest.mark.parametrize("pool", ["gated_attention", "queries"])
def test_the_share_of_each_tile_is_kept_and_makes_the_vector(image, tmp_path, pool):
    embed(
        image, tmp_path / "out", encoder=CORNERS, tiles=tiles(), pool=pool, compute={"shard_tiles": 20}, output={"save": ["tiles", "slide"]}
    )
    table = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles")
    shares = table.obsm["attention"]
    assert shares.shape == (len(table), 1)
    assert abs(shares.sum() - 1) < 1e-5
    np.testing.assert_allclose(shares[:, 0] @ table.X, opened(tmp_path / "out", "a").slide_vector, rtol=1e-4, atol=1e-5)


def test_only_what_was_asked_for_is_kept(image, tmp_path):
    sections = {"encoder": TOKENS, "tiles": tiles(), "context": CONTEXT | {"schedule": "dense"}, "pool": "mean"}
    embed(image, tmp_path / "all", output={"save": ["tiles", "slide"]}, **sections)
    embed(image, tmp_path / "one", output={"save": ["slide"]}, **sections)
    folder = tmp_path / "one" / "a.zarr"
    assert not (folder / "tables" / "tiles" / "X").exists()
    assert not (folder / "tables" / "tiles" / "obsm" / "context").exists()
    assert not any((tmp_path / name / "a.zarr" / "tokens").exists() for name in ("all", "one"))
    kept = opened(tmp_path / "one", "a")
    np.testing.assert_array_equal(kept.slide_vector, opened(tmp_path / "all", "a").slide_vector)
    assert (len(kept.obs), kept.context) == (72, None)
    assert anndata.read_zarr(folder / "tables" / "tiles").n_obs == 72
    assert zarr.open_group(str(folder), mode="r").attrs["tilestream"]
    again = embed(image, tmp_path / "one", output={"save": ["slide"]}, **sections)
    assert again.slides[0].status == "already done"


def test_a_removal_that_was_cut_short_goes_on(image, tmp_path):
    sections = {"encoder": CORNERS, "tiles": tiles(), "pool": "mean", "output": {"save": ["slide"]}}
    embed(image, tmp_path / "out", **sections)
    vector, folder = opened(tmp_path / "out", "a").slide_vector, tmp_path / "out" / "a.zarr"
    (folder / ".tilestream" / "complete.json").unlink()
    (folder / "tables" / "tiles" / "X" / "c").mkdir(parents=True)
    embed(image, tmp_path / "out", **sections)
    np.testing.assert_array_equal(opened(tmp_path / "out", "a").slide_vector, vector)
    assert not (folder / "tables" / "tiles" / "X").exists()
