"""What heads answered, as the viewer shows it: objects by tile of the zoom, densities, classes."""

import io

import numpy as np
import pytest
import zarr
from PIL import Image

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.made_nuclei import CLASSES, draw_nuclei, place_nuclei
from tests.support.runs import config
from tests.support.viewing import ask, viewed
from tilestream.store.heads.palette import class_colours
from tilestream.viewer.answers import class_counts, density_layer, draw_answer_tile, draw_object_tile, head_overlays
from tilestream.viewer.deepzoom import SIDE, Zoom
from tilestream.viewer.report import write_report

NUCLEI = place_nuclei(1200, 200, 5)
KINDS = np.random.default_rng(5).integers(0, 3, 200)


@pytest.fixture(scope="module", params=["none", "tests.support.encoders:mean_rgb"])
def shown(request, tmp_path_factory):
    """An output of a slide of nuclei that were found, with and without embeddings beside them."""
    folder = tmp_path_factory.mktemp("nuclei")
    write_pyramid(folder / "a.tif", draw_nuclei(1200, NUCLEI, KINDS), compression="deflate", levels=1)
    head = {"kind": "detect", "model": "tests.support.made_nuclei:instances", "size": 400, "overlap": 32}
    tiles = {"size": 200, "level": 0, "tissue": "none"}
    tilestream.run(config(folder / "a.tif", folder / "out", encoder=request.param, tiles=tiles, heads={"nuclei": head}))
    return folder / "out"


def test_objects_have_their_outlines_where_they_lie(shown):
    slide = viewed(shown / "a.zarr")
    zoom = Zoom(slide.size)
    level = zoom.deepest
    scale = zoom.scale(level)
    seen = 0
    for (y, x, radius), kind in zip(NUCLEI.tolist(), KINDS.tolist(), strict=True):
        top, left = (y - radius) / scale, (x + 0.5) / scale
        col, row = int(left // SIDE), int(top // SIDE)
        if top % SIDE < 4 or y < radius:
            continue
        picture = np.asarray(Image.open(io.BytesIO(draw_object_tile(slide, "nuclei", (level, col, row)))))
        near = picture[int(top % SIDE) - 2 : int(top % SIDE) + 3, int(left % SIDE)]
        assert (near == (*class_colours(3)[kind], 255)).all(axis=1).any()
        seen += 1
    assert seen > 150


def test_a_tile_of_the_whole_slide_shows_every_class(shown):
    slide = viewed(shown / "a.zarr")
    picture = np.asarray(Image.open(io.BytesIO(draw_object_tile(slide, "nuclei", (0, 0, 0)))))
    assert {tuple(colour) for colour in picture[picture[..., 3] > 0][:, :3].tolist()} == set(class_colours(3))
    assert draw_object_tile(slide, "nuclei", (0, 1, 0)) is None


def test_the_server_gives_tiles_of_objects_by_number(shown):
    answers = ask(shown, [("/objects/0/0/0/0/0.png", {}), ("/objects/0/1/0/0/0.png", {}), ("/objects/7/0/0/0/0.png", {}), ("/", {})])
    assert [code for code, _ in answers] == [200, 404, 404, 200]
    assert Image.open(io.BytesIO(answers[0][1])).size == (300, 300)  # of 1,200 px, a quarter


def test_densities_and_counts_are_those_of_the_store(shown):
    slide = viewed(shown / "a.zarr")
    assert head_overlays(slide) == ["objects: nuclei", "density: nuclei"]
    counted = np.bincount(KINDS, minlength=3)
    assert [words for _, words in class_counts(slide, "objects: nuclei")] == [f"{name} {n}" for name, n in zip(CLASSES, counts_of(counted), strict=True)]  # fmt: skip
    layer = density_layer(slide, "nuclei")
    assert "objects a mm²" in layer.legend.words
    assert layer.rgba.shape == (36, 4)


def test_the_report_counts_objects_by_class(shown, tmp_path):
    write_report(str(shown), str(tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    counted = np.bincount(KINDS, minlength=3)
    assert f"nuclei: 200 objects ({', '.join(f'{name} {n}' for name, n in zip(CLASSES, counted, strict=True))})" in text


def counts_of(counts):
    return [f"{count:,}" for count in counts.tolist()]


def test_label_images_are_laid_tile_by_tile_and_counted(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(900, 1300, 1), compression="deflate", levels=1, mpp=0.5)
    head = {"kind": "segment", "model": "tests.support.dense_models:strided41", "size": 320}
    tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", encoder="none", tiles={"size": 200}, heads={"kinds": head}))
    slide = viewed(tmp_path / "out" / "a.zarr")
    assert head_overlays(slide) == ["labels: kinds"]
    labels = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    colours = np.array([(0, 0, 0, 0), *((*colour, 255) for colour in class_colours(4))], np.uint8)
    deepest = Zoom(slide.size).deepest
    for level, step in ((deepest, 4), (0, 2)):  # level-0 px a px of the tile: 1, and 4; labels have 4
        for row, col in ((0, 0), (1, 2)) if level == deepest else ((0, 0),):
            found = np.asarray(Image.open(io.BytesIO(draw_answer_tile(slide, "kinds", (level, col, row)))))
            scale = Zoom(slide.size).scale(level)
            y, x = ((start * SIDE + np.arange(0, SIDE, 7)) * scale // 4 for start in (row, col))
            y, x = y[y < labels.shape[0]], x[x < labels.shape[1]]
            thinned = found[::7, ::7]
            y, x = y[: len(thinned)], x[: thinned.shape[1]]
            assert (thinned[: len(y), : len(x)] == colours[labels[y][:, x]]).all(), (level, step)
            assert found.shape[:2] == Zoom(slide.size).shape(level, col, row)
            assert not thinned[len(y) :].any()
    counts = np.bincount(labels.ravel(), minlength=5)[1:]
    assert [words for _, words in class_counts(slide, "labels: kinds")] == [
        f"class{k} {n / counts.sum():.1%}" for k, n in enumerate(counts)
    ]
    write_report(str(tmp_path / "out"), str(tmp_path / "r.html"))
    assert f"kinds: class0 {counts[0] / counts.sum():.1%}" in (tmp_path / "r.html").read_text()
