"""Area averages agree with a dense float64 reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilestream.tiles.resample import area_average


def dense_weights(offset, factor, size, length):
    """(size, length) float64: the overlap of each output bin with each source pixel."""
    low = offset + np.arange(size)[:, None] * factor
    pixel = np.arange(length)
    overlap = np.minimum(pixel + 1, low + factor) - np.maximum(pixel, low)
    return np.clip(overlap, 0, None) / factor


def reference(pixels, y, x, extent, size):
    rows = dense_weights(y, extent / size, size, pixels.shape[0])
    cols = dense_weights(x, extent / size, size, pixels.shape[1])
    return np.einsum("ih,hwc,jw->ijc", rows, pixels.astype(np.float64), cols)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 24), factor=st.floats(1.0, 6.0), y=st.floats(0, 1), x=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_output_pixel_is_the_mean_of_its_area(size, factor, y, x, seed):
    extent = size * factor
    side = int(np.ceil(extent)) + 1
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    got = area_average(pixels, y, x, extent, size)
    assert np.abs(got - reference(pixels, y, x, extent, size)).max() <= 0.51


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 16, 17])
def test_whole_factors_are_exact_block_means(factor):
    pixels = np.random.default_rng(0).integers(0, 256, (8 * factor + 3, 8 * factor + 5, 3), np.uint8)
    got = area_average(pixels, 2, 1, 8.0 * factor, 8)
    blocks = pixels[2 : 2 + 8 * factor, 1 : 1 + 8 * factor].reshape(8, factor, 8, factor, 3).mean((1, 3))
    assert np.array_equal(got, np.floor(blocks + 0.5).astype(np.uint8))


def test_white_stays_white():
    assert (area_average(np.full((500, 500, 3), 255, np.uint8), 0.3, 0.7, 454.7, 224) == 255).all()
