"""Pictures of every mode say where tissue is, whichever band a class is written in."""

import numpy as np
import pytest
from PIL import Image

from tilestream.config.schema import Tissue
from tilestream.errors import InputError
from tilestream.tiles.thumbnail import Thumbnail
from tilestream.tiles.tissue import find_tissue


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "RGB", "RGBA", "LA", "P", "holes"])
def test_pictures_of_every_mode_say_the_same(tmp_path, mode):
    truth = np.zeros((47, 61), bool)
    truth[5:20, 7:40] = True
    level = truth.astype(np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(level.astype(np.uint16) * 3)
    elif mode == "holes":  # black where it is opaque: the alpha is the mask
        picture = Image.fromarray(np.stack([level * 0, level * 0, level * 0, level * 255], axis=2))
    elif mode == "P":
        picture = Image.fromarray(level, "P")
        picture.putpalette([0, 0, 0, 40, 0, 90])
    else:
        picture = Image.fromarray(level * 255).convert(mode)
    picture.save(tmp_path / "m.png")
    found = find_tissue(Thumbnail(np.zeros((47, 61, 3), np.uint8), 10.0), Tissue(), file=tmp_path / "m.png")
    assert np.array_equal(found.mask, truth)


@pytest.mark.parametrize("number", [1, 2, 255])
@pytest.mark.parametrize("band", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_class_number_in_any_band_of_a_picture_is_tissue(tmp_path, mode, band, number):
    truth = np.zeros((47, 61), bool)
    truth[5:20, 7:40] = True
    colours = np.zeros((47, 61, 3), np.uint8)
    colours[truth, band] = number
    picture = Image.fromarray(colours).convert("RGBA" if mode == "RGBA" else "RGB")
    if mode == "P":
        picture = Image.fromarray(truth.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, *(number * (k == band) for k in range(3))])
    picture.save(tmp_path / "m.png")
    found = find_tissue(Thumbnail(np.zeros((47, 61, 3), np.uint8), 10.0), Tissue(), file=tmp_path / "m.png")
    assert np.array_equal(found.mask, truth)


def test_a_picture_of_another_shape_is_refused(tmp_path):
    Image.fromarray(np.ones((50, 50), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m.png is a picture of 50 x 50 px, but the image is 47 x 61 thumbnail px"):
        find_tissue(Thumbnail(np.zeros((47, 61, 3), np.uint8), 10.0), Tissue(), file=tmp_path / "m.png")
