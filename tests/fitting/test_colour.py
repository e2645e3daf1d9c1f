"""Colours of tiles on the thumbnail, against a plain loop."""

import io

import numpy as np
from PIL import Image

import tilestream
from tests.support.stores import make_store
from tilestream.fitting.colour import read_colours


def test_colours_are_those_of_the_pixels_under_a_tile(tmp_path):
    make_store(tmp_path / "a.zarr", 5, 7, tile=224)
    slide = tilestream.open(tmp_path / "a.zarr")
    pixels = np.random.default_rng(0).integers(0, 256, (5 * 224 // 32, 7 * 224 // 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "a.zarr" / "thumbnail.png").write_bytes(buffer.getvalue())
    rows = np.array([0, 3, 34])
    found = read_colours(slide, rows)
    for row, colours in zip(rows, found, strict=True):
        y, x = row // 7 * 7, row % 7 * 7  # 7 pixels a tile
        box = pixels[y : y + 7, x : x + 7].reshape(-1, 3) / 255
        np.testing.assert_allclose(colours, np.concatenate([box.mean(axis=0), box.std(axis=0)]), atol=1e-9)


def test_a_slide_without_a_thumbnail_has_no_colours(tmp_path):
    make_store(tmp_path / "a.zarr", 2, 2)
    slide = tilestream.open(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "thumbnail.png").unlink()
    assert read_colours(slide, np.arange(2)) is None
