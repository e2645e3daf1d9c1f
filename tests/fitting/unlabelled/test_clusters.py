"""Clusters, nearest tiles, duplicates and outliers of a cohort, against dense answers."""

import csv

import numpy as np
import pytest
from sklearn.cluster import KMeans

import tilestream
from tests.support.cohorts import write_rows
from tests.support.stores import make_store
from tilestream.encoders.heads.head_file import read_head
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.fit import fit
from tilestream.fitting.training.tile_models import scores_of
from tilestream.fitting.unlabelled.clusters import cluster_slides
from tilestream.fitting.unlabelled.neighbours import find_duplicates

SLIDES, TILES, DIM, K = 5, 36, 4, 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Tiles around three centres, one tile far from all, and one tile that two slides share."""
    folder = tmp_path_factory.mktemp("clusters")
    chance = np.random.default_rng(0)
    centres = np.array([[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 5]])
    x = centres[chance.integers(K, size=(SLIDES, TILES))] + chance.normal(scale=0.5, size=(SLIDES, TILES, DIM))
    x[2, 7] = [-20, 3, 1, 0]
    x[4, 30] = x[1, 3]
    x = x.astype(np.float32)
    for i in range(SLIDES):
        write_rows(folder / "out" / f"s{i}.zarr", x[i], fingerprint=f"image{i}")
    return folder, x, list(tilestream.open(folder / "out"))


def test_clusters_are_those_of_the_dense_method(cohort):
    _, x, slides = cohort
    found = cluster_slides(slides, "tiles", K, 0)
    rows = np.delete(x.reshape(-1, DIM), 2 * TILES + 7, axis=0)
    dense = KMeans(K, n_init=5, random_state=0).fit(rows)
    own = dense.predict(x.reshape(-1, DIM).astype(np.float32)).reshape(SLIDES, TILES)
    distances = ((found.centres[:, None] - dense.cluster_centers_) ** 2).sum(axis=2)
    order = distances.argmin(axis=1)
    assert sorted(order) == [0, 1, 2]
    assert np.sqrt(distances.min(axis=1)).max() < 0.5
    expected = np.stack([np.bincount(slide, minlength=K) for slide in own])[:, order]
    assert np.abs(found.counts - expected).max() <= 1
    assert found.outliers[0][:2] == (2, 7)


def test_slides_without_tiles_change_nothing(cohort, tmp_path):
    folder, _, slides = cohort
    make_store(tmp_path / "none.zarr", 1, 1, dim=DIM, keep=np.zeros((1, 1), bool), fingerprint="none")
    more = [*slides[:2], tilestream.open(tmp_path / "none.zarr"), *slides[2:]]
    assert more[2].layout.tiles == 0
    one, other = (cluster_slides(each, "tiles", K, 0) for each in (slides, more))
    assert np.abs(np.sort(other.counts.sum(axis=0)) - np.sort(one.counts.sum(axis=0))).max() <= 1  # numbered otherwise, perhaps
    assert other.counts[2].tolist() == [0] * K
    assert [(i - (i > 2), k, j - (j > 2), m) for i, k, j, m, *_ in find_duplicates(more, "tiles", 0)] == [(1, 3, 4, 30)]
    (tmp_path / "out").mkdir()
    make_store(tmp_path / "out" / "none.zarr", 1, 1, dim=DIM, keep=np.zeros((1, 1), bool), fingerprint="none")
    config = {
        "target": {"clusters": K},
        "head": {"name": "kinds", "kind": "classify", "model": "kmeans"},
        "save": str(tmp_path / "k.safetensors"),
    }
    found = fit({"embeddings": [str(tmp_path / "out"), str(folder / "out")], **config})
    assert f"{SLIDES * TILES} tiles of {SLIDES + 1} slides" in found.lines[0]


def test_nearest_tiles_and_duplicates_are_exact(cohort):
    folder, x, slides = cohort
    queries = np.stack([x[0, 0], x[3, 5]])
    flat = x.reshape(-1, DIM).astype(np.float64)
    cosine = flat @ queries.T / np.linalg.norm(flat, axis=1)[:, None] / np.linalg.norm(queries, axis=1)
    table = tilestream.find_nearest(folder / "out", queries, 7)
    for q, found in table.groupby("query"):
        expected = np.argsort(-cosine[:, q], kind="stable")[:7]
        assert list(zip(found["slide"], found["tile"], strict=True)) == [(f"s{int(m) // TILES}", int(m) % TILES) for m in expected]
        np.testing.assert_allclose(found["cosine"], cosine[expected, q], atol=1e-6)
    assert table["y"].iloc[0] == slides[0].positions[0][0]
    with pytest.raises(InputError, match="vectors have 3 features, but those of s0 have 4"):
        tilestream.find_nearest(folder / "out", np.zeros(3))
    assert find_duplicates(slides, "tiles", 0)[0][:4] == (1, 3, 4, 30)


def test_a_head_of_clusters_is_fitted_without_labels(cohort, tmp_path):
    folder, x, _ = cohort
    config = {
        "embeddings": str(folder / "out"), "target": {"clusters": K}, "head": {"name": "kinds", "kind": "classify", "model": "kmeans"},
        "save": str(tmp_path / "kinds.safetensors"),
    }  # fmt: skip
    found = fit(config)
    assert found.evaluation is None
    module, about = read_head(found.head)
    assert about.classes == ("cluster 1", "cluster 2", "cluster 3")
    own = scores_of(module, x.reshape(-1, DIM)).argmax(axis=1).reshape(SLIDES, TILES)
    rows = list(csv.DictReader(found.predictions.read_text().splitlines()))
    assert [[int(row[name]) for name in about.classes] for row in rows] == [np.bincount(slide, minlength=K).tolist() for slide in own]
    page = found.report.read_text()
    assert "Outliers" in page
    assert "Duplicates" in page
    with pytest.raises(InputError, match=r"target\.clusters: 190, but there are only 180 tiles"):
        fit({**config, "target": {"clusters": 190}})
    with pytest.raises(ConfigError, match="kmeans and clusters go together"):
        fit({**config, "head": {**config["head"], "model": "linear"}})
