"""The picture of a slide: its axes are the principal ones, its colours lie where the tiles are."""

import io

import numpy as np
import pytest
from PIL import Image

from tilestream.geometry import Size, TileGrid
from tilestream.models.pca import principal_axes, principal_colours
from tilestream.stages.overview import (
    EMPTY,
    HEADER,
    KEPT,
    KEPT_ON_DARK,
    MARGIN,
    OUTLINE,
    OUTLINE_ON_DARK,
    PANEL_PX,
    draw_overview,
    draw_slide_panel,
    tiles_at_edges,
)
from tilestream.store.layout import OK, PADDED


def vectors(rows=1000, dim=192, seed=0):
    """Rows with a spread that falls from feature to feature, turned into no feature's direction."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return ((rng.standard_normal((rows, dim)) * np.exp(-np.arange(dim) / 4)) @ turn + 3).astype(np.float32)


def each_of(rows, block=256):
    """Passes over rows in memory as a store makes them."""

    def each(work, skip):
        return (work(rows[start : start + block], start) for start in range(0, len(rows), block * (skip + 1)))

    return each


@pytest.mark.parametrize("dim", [3, 4, 192])
def test_axes_are_those_of_the_singular_value_decomposition(dim):
    rows = vectors(dim=dim)
    axes = principal_axes(each_of(rows)(lambda block, _: block, 0))
    right = np.linalg.svd(rows - rows.mean(axis=0, dtype=np.float64), full_matrices=False)[2][:3].T
    np.testing.assert_allclose(np.abs((axes * right).sum(axis=0)), 1, atol=1e-5)
    assert (axes[np.abs(axes).argmax(axis=0), range(3)] > 0).all()


def test_colours_are_the_scores_and_do_not_depend_on_the_blocks():
    rows = vectors()
    colours = principal_colours(each_of(rows), len(rows))
    scores = rows @ principal_axes([rows])
    for component in range(3):
        order = np.argsort(scores[:, component])
        assert (np.diff(colours[order, component].astype(int)) >= -1).all()
        assert colours[order[0], component] == 0
        assert colours[order[-1], component] == 255
    assert np.abs(colours.astype(int) - principal_colours(each_of(rows, 100), len(rows))).max() <= 1
    assert np.array_equal(colours, principal_colours(each_of(rows), len(rows)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_rows_that_are_no_numbers_or_immense_leave_the_others_as_they_are(bad):
    rows = vectors()
    spoilt = np.insert(rows, [10, 500], bad, axis=0)
    colours = principal_colours(each_of(spoilt), len(spoilt))
    if not np.isfinite(bad):
        assert (colours[[10, 501]] == 128).all()
        assert np.abs(np.delete(colours, [10, 501], axis=0).astype(int) - principal_colours(each_of(rows), len(rows))).max() <= 1
    assert len(np.unique(np.delete(colours, [10, 501], axis=0), axis=0)) > 500


def test_rows_set_aside_have_a_colour_and_leave_the_others_as_they_are():
    rows = vectors()
    aside = np.zeros(1000 + 200, bool)
    aside[::6] = True
    more = np.empty((1200, 192), np.float32)
    more[~aside], more[aside] = rows, rows[:200]
    more[:300:6] *= 50
    colours = principal_colours(each_of(more, 100), 1200, aside)
    assert np.abs(colours[~aside].astype(int) - principal_colours(each_of(rows), 1000)).max() <= 1
    assert len(np.unique(colours[aside], axis=0)) > 20, "none of them is grey for being set aside"


def test_tiles_at_edges_are_those_with_little_tissue_and_those_that_hang_over():
    status, tissue = np.array([OK, PADDED, OK, OK, OK, OK], np.int8), np.array([1, 1, 0.4, 0.5, np.nan, 1], np.float32)
    assert tiles_at_edges(status, tissue).tolist() == [False, True, True, False, False, False]
    assert tiles_at_edges(status[:5], tissue[:5]) is None, "three say too little of a slide"


@pytest.mark.parametrize("rows", [np.empty((0, 8)), np.full((5, 8), np.nan), np.ones((1, 8)), np.ones((300, 8)), np.zeros((300, 2))])
def test_what_has_no_spread_has_a_colour_still(rows):
    colours = principal_colours(each_of(rows.astype(np.float32)), len(rows))
    assert colours.shape == (len(rows), 3)
    assert len(np.unique(colours, axis=0)) <= 1


def picture(grid, row, col, colours):
    """The two panels of an overview over a grey thumbnail whose upper half is tissue."""
    height, width = grid.l0_size.height // 10, grid.l0_size.width // 10
    mask = np.zeros((height, width), bool)
    mask[: height // 2] = True
    panel = draw_slide_panel(np.full((height, width, 3), 120, np.uint8), mask, grid, row, col)
    image = np.asarray(Image.open(io.BytesIO(draw_overview(panel, colours, "a slide"))))
    h, w = panel.place.shape
    top = 2 * HEADER + 6
    return panel, image[top : top + h, MARGIN : MARGIN + w], image[top : top + h, w + 2 * MARGIN : 2 * w + 2 * MARGIN]


def test_each_tile_has_its_colour_at_its_place():
    grid = TileGrid(Size(3000, 4500), 300, 300, 1.0)
    row, col = np.array([0, 3, 9, 9]), np.array([0, 5, 0, 14])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    panel, slide, map_ = picture(grid, row, col, colours)
    assert panel.place.shape == (PANEL_PX * 3000 // 4500, PANEL_PX)
    scale = 4500 / PANEL_PX
    for tile, (y, x) in enumerate(zip(row * 300, col * 300, strict=True)):
        at = slice(round(y / scale), round((y + 300) / scale)), slice(round(x / scale), round((x + 300) / scale))
        assert (map_[at] == colours[tile]).all()
        edge = slide[at[0].start + 5, at[1].stop] if at[1].stop < PANEL_PX else slide[at[0].start + 5, at[1].start]
        assert tuple(edge) == KEPT, "kept tiles have a border"
    assert (map_ == EMPTY).all(axis=-1).sum() == map_[..., 0].size - 4 * 60 * 60
    assert (slide == OUTLINE).all(axis=-1).any(), "tissue has an outline"


def test_lines_are_light_on_dark_slides_and_the_bar_is_as_long_as_it_says():
    grid = TileGrid(Size(3000, 4500), 300, 300, 1.0)
    row, col = np.array([3, 3]), np.array([5, 6])
    panel = draw_slide_panel(np.full((300, 450, 3), 20, np.uint8), np.eye(300, 450, dtype=bool), grid, row, col)
    assert (panel.pixels == KEPT_ON_DARK).all(axis=-1).any()
    assert (panel.pixels == OUTLINE_ON_DARK).all(axis=-1).any()
    assert not (panel.pixels == KEPT).all(axis=-1).any()
    image = np.asarray(Image.open(io.BytesIO(draw_overview(panel, np.zeros((2, 3), np.uint8), "2 µm", "tissue", mpp=1.5))))
    bottom = 2 * HEADER + 6 + panel.pixels.shape[0] - 10
    bar = (image[bottom - 8, MARGIN + 12 :] == 0).all(axis=-1)
    start = int(bar.argmax())
    assert int((~bar[start:]).argmax()) == round(200 / 1.5) + 1


def test_tiles_too_small_to_see_have_no_borders():
    grid = TileGrid(Size(3000, 3000), 10, 10, 1.0)
    row, col = (places.ravel() for places in np.mgrid[:300, :300])
    _, slide, map_ = picture(grid, row, col, np.full((len(row), 3), 77, np.uint8))
    assert not (slide == KEPT).all(axis=-1).any()
    assert (map_ == 77).all()


@pytest.mark.parametrize("stride", [56, 75, 112, 168, 224])
def test_a_value_lies_at_the_centre_of_its_tile(stride):
    """Whatever the overlap: the picture's value at a tile's centre is the tile's, and the cell there reaches half a step to each side."""
    grid = TileGrid(Size(6000, 4000), tile=224, stride=stride, scale=1.5)
    row, col = grid.candidates()
    panel = draw_slide_panel(np.zeros((120, 80, 3), np.uint8), np.ones((120, 80), bool), grid, row, col)
    to_panel = panel.place.shape[0] / 6000
    y, x = ((at + grid.l0_extent / 2) * to_panel for at in (grid.l0_y(row), grid.l0_x(col)))
    inside = (y < panel.place.shape[0]) & (x < panel.place.shape[1])
    assert inside.sum() > 100
    np.testing.assert_array_equal(panel.place[y[inside].astype(int), x[inside].astype(int)], np.flatnonzero(inside))
    assert (panel.place >= 0).all()  # overlapping tiles cover the whole image, its borders too
    top, left = grid.l0_cells
    assert (top + grid.l0_step / 2, left + grid.l0_step / 2) == pytest.approx((grid.l0_extent / 2, grid.l0_extent / 2))
