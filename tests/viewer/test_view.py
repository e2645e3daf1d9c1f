"""The viewer: what is computed before a page shows it."""

import io

import numpy as np
import pytest
from PIL import Image

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tests.support.stores import make_store
from tests.support.viewing import viewed
from tilestream.geometry import Region, Size, placed_at
from tilestream.viewer.catalogue import Catalogue
from tilestream.viewer.clusters import cluster
from tilestream.viewer.deepzoom import SIDE, DeepZoom, Zoom
from tilestream.viewer.neighbours import nearest, similarity
from tilestream.viewer.overlays import PictureLayer, mixed_layer, mixed_vectors, status_layer, tissue_layer
from tilestream.viewer.pixels import Images


def test_similarity_in_blocks_is_that_of_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr("tilestream.viewer.slide.BLOCK_ROWS", 7)
    store = make_store(tmp_path / "s.zarr", rows=9, cols=11, dim=12, failed=[3, 50])
    x = store.array("tables/tiles/X")[:]
    expected = x @ x[20] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[20])
    found = similarity(viewed(tmp_path / "s.zarr"), x[20])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 50]
    order = np.argsort(-np.where(np.isnan(expected), -9, expected), kind="stable")
    assert nearest(found, 5, exclude=20).tolist() == order[1:6].tolist()
    assert len(nearest(found, 500)) == 97


def test_clusters_find_separate_groups_and_repeat():
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    scores = (truth[:, None] * 10 + random.normal(size=(100, 3))).astype(np.float16)
    scores[7] = np.nan
    found = cluster(scores, 3)
    assert found[7] == -1
    known = np.arange(100) != 7
    np.testing.assert_array_equal(found[known], truth[known])  # the largest group comes first
    np.testing.assert_array_equal(found, cluster(scores, 3))
    assert set(cluster(np.zeros((5, 3), np.float16), 4).tolist()) == {0}
    assert cluster(np.full((4, 3), np.nan, np.float16), 2).tolist() == [-1] * 4


def test_tiles_of_an_unfinished_slide_that_are_not_committed_are_absent(tmp_path):
    store = make_store(tmp_path / "s.zarr", rows=30, cols=30, finish=False)
    store.folder.delete(".tilestream/shards/tiles-000001.json")
    slide = viewed(tmp_path / "s.zarr")
    assert (slide.status[:512] == 0).all()
    assert (slide.status[512:] == -1).all()
    assert "388 tiles to come" in slide.words
    similar = similarity(slide, slide.embedding(0))
    assert np.isfinite(similar[:512]).all()
    assert np.isnan(similar[512:]).all()
    assert (status_layer(slide.status).rgba[:, 3] == 255).sum() == 512


def test_contexts_are_laid_over_as_colours_of_their_own_components(tmp_path):
    image = write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)
    for context in ({"window": 4, "depth": 1, "heads": 3}, {"window": 8, "depth": 2, "heads": 3, "as": "wide"}):
        tilestream.run(given(image, tmp_path / "out", context=context))
    slide = viewed(tmp_path / "out" / "a.zarr")
    assert mixed_vectors(slide) == ["context", "context-wide"]
    for what in mixed_vectors(slide):
        layer = mixed_layer(slide, what)
        rows = slide.vectors(what)[:].astype(np.float64)
        scores = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[0]
        colours = layer.rgba
        assert (colours[:, 3] == 255).all()
        assert all(abs(np.corrcoef(scores[:, k], colours[:, k])[0, 1]) > 0.95 for k in range(2))
        assert what in layer.legend.words


@pytest.mark.parametrize("stride", [56, 100, 168, 224])
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_cell_of_the_map_has_the_centre_of_its_tile(tmp_path, stride, scale):
    make_store(tmp_path / "s.zarr", rows=7, cols=9, stride=stride, scale=scale, keep=np.indices((7, 9)).sum(axis=0) % 5 > 0)
    slide = viewed(tmp_path / "s.zarr")
    places = slide.places()
    cell = places.extent.l0_height / places.tile.shape[0]
    table = slide.obs
    for tile, (y, x) in enumerate(zip(table["y"], table["x"], strict=True)):
        row, col = (int((at + slide.l0_extent / 2 - start) // cell) for at, start in ((y, places.extent.l0_y), (x, places.extent.l0_x)))
        assert places.tile[row, col] == tile
        centre = places.extent.l0_y + (row + 0.5) * cell, places.extent.l0_x + (col + 0.5) * cell
        assert centre == pytest.approx((y + slide.l0_extent / 2, x + slide.l0_extent / 2), abs=1)  # tiles begin at whole px


def test_tiles_on_no_lattice_are_where_their_centres_are_nearest():
    made = np.random.default_rng(0)
    y, x = made.integers(0, 700, (2, 60))
    places = np.arange(0.5, 800, 3)
    found = placed_at(y, x, 90.0, places, places)
    away = np.maximum(np.abs(places[:, None, None] - y - 45), np.abs(places[None, :, None] - x - 45))
    covered = away.min(axis=2) < 45
    np.testing.assert_array_equal(found >= 0, covered)
    chosen = np.take_along_axis(away, np.maximum(found, 0)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(chosen[covered], away.min(axis=2)[covered])
    assert set(placed_at(y, x, 0.1, places, places).ravel()) >= {0}, "what is smaller than a place has one still"


def test_overlays_of_failed_missing_and_empty_tiles(tmp_path):
    keep = np.ones((4, 5), bool)
    keep[1, 2] = False
    make_store(tmp_path / "f.zarr", failed=[4], keep=keep)
    slide = viewed(tmp_path / "f.zarr")
    places = slide.places().tile
    assert places.shape == (4, 5)
    assert places[1, 2] == -1
    rgba = status_layer(slide.status).rgba
    assert (rgba[places[0, 4]] != rgba[places[0, 3]]).any()
    assert slide.scores().shape == (19, 6)
    assert np.isnan(slide.scores()[4]).all()
    make_store(tmp_path / "n.zarr", keep=np.zeros((4, 5), bool))
    none = viewed(tmp_path / "n.zarr")
    assert "no tissue" in none.words
    assert np.isnan(none.scores()).all()
    mask = tissue_layer(none)
    assert isinstance(mask, PictureLayer)
    assert mask.rgba.any()
    (tmp_path / "n.zarr" / "tissue.png").unlink()
    assert "no tissue was looked for" in tissue_layer(none).legend.words


def test_a_tile_of_the_zoom_is_the_mean_of_the_pixels_below_it(output):
    catalogue = Catalogue([str(output)], "a")
    slide = catalogue.slide(0)
    zoom = Zoom(slide.size)
    image = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (zoom.deepest, 1, 1)))), np.float32)
    with catalogue.zoom.images.using(0, slide) as (source, why):
        assert not why
        exact = source.read_region(0, Region(SIDE, SIDE, SIDE, SIDE)).astype(np.float32)
        coarse = source.read_region(0, Region(0, 0, 2 * SIDE, 2 * SIDE)).reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
    assert np.abs(image - exact).mean() < 4  # JPEG twice
    above = np.asarray(Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (zoom.deepest - 1, 0, 0)))), np.float32)
    assert np.abs(above - coarse).mean() < 6
    assert catalogue.zoom.tile(0, slide, (zoom.deepest + 1, 0, 0)) is None
    assert catalogue.zoom.tile(0, slide, (0, 1, 0)) is None
    last = Image.open(io.BytesIO(catalogue.zoom.tile(0, slide, (zoom.deepest, 6, 4))))
    assert last.size == (3100 - 6 * SIDE, 2300 - 4 * SIDE)  # it ends where the image does
    catalogue.zoom.images.close()


def test_only_the_right_level_is_read_and_never_all_of_it(output, monkeypatch):
    catalogue = Catalogue([str(output)], "a")
    slide, zoom = catalogue.slide(0), catalogue.zoom
    seen = []
    with zoom.images.using(0, slide) as (source, _):
        read = source.read_region
        monkeypatch.setattr(source, "read_region", lambda level, region: (seen.append((level, region)), read(level, region))[1])
    deepest = Zoom(slide.size).deepest
    for level in range(deepest + 1):
        zoom.tile(0, slide, (level, 0, 0))
    assert [level for level, _ in seen] == [min(3, deepest - level) for level in range(deepest + 1)]
    assert all(max(region.height, region.width) <= SIDE + 1 for _, region in seen)
    zoom.images.close()


def test_images_in_use_stay_open_and_idle_ones_are_closed(output, monkeypatch):
    monkeypatch.setattr("tilestream.viewer.pixels.SOURCES_OPEN", 1)
    catalogue, images = Catalogue([str(output)]), Images()
    with images.using(0, catalogue.slide(0)) as (first, _):
        with images.using(1, catalogue.slide(1)) as (second, _):
            assert first.read_region(0, Region(0, 0, 8, 8)).shape == (8, 8, 3)
            assert second is not first
        closed = []
        monkeypatch.setattr(second, "close", lambda: closed.append(second))
    with images.using(0, catalogue.slide(0)):
        assert closed == [second]
    images.close()


def test_a_missing_image_is_shown_by_its_thumbnail(tmp_path):
    make_store(tmp_path / "m.zarr", address=str(tmp_path / "gone.svs"))
    slide, zoom = viewed(tmp_path / "m.zarr"), DeepZoom(Images())
    with zoom.images.using(0, slide) as (source, why):
        assert source is None
        assert "gone.svs: no such file" in why
    tile = np.asarray(Image.open(io.BytesIO(zoom.tile(0, slide, (Zoom(slide.size).deepest, 0, 0)))))
    assert abs(int(tile.mean()) - 200) <= 1
    make_store(tmp_path / "s.zarr", address="sample://he?width=2048&height=2048&seed=123456")
    with zoom.images.using(1, viewed(tmp_path / "s.zarr")) as (source, why):
        assert source is None  # it is not drawn anew
        assert "is not drawn any more" in why


def test_the_square_of_a_zoom_holds_the_image():
    zoom = Zoom(Size(8192, 12288))
    assert zoom.l0_side >= 12288
    assert zoom.scale(zoom.deepest) == 1
    assert zoom.shape(zoom.deepest, 23, 15) == (SIDE, SIDE)
    assert zoom.shape(zoom.deepest, 24, 0) is None
    assert zoom.shape(0, 0, 0) == (256, 384)
    assert zoom.shape(0, 0, 1) is None
