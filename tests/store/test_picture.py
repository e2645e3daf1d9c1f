"""Pictures as PNG hold what they were made from."""

import io

import numpy as np
import pytest
from PIL import Image

from tilestream.store.picture import png_bytes


@pytest.mark.parametrize(("channels", "mode"), [((3,), "RGB"), ((4,), "RGBA"), ((), "1")])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 211)])
def test_a_png_holds_the_pixels(size, channels, mode):
    noise = np.random.default_rng(0).integers(0, 256, (*size, *channels), np.uint8)
    pixels = noise if channels else noise > 100
    with Image.open(io.BytesIO(png_bytes(pixels))) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_a_view_of_every_other_pixel_is_written_as_it_looks():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)[::2, ::-2]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)
