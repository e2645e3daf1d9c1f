"""The picture of an image that people look at: sharp where the file allows it, and no wider than it says in memory. The judge is Pillow."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.support.images import make_image, write_pyramid
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles import thumbnail
from tilestream.tiles.thumbnail import PICTURE_SIDE, picture_bytes, read_picture, read_thumbnail

MIB = 1024**2


def seen(path):
    with open_source(str(path), SourceOptions()) as source:
        small = read_thumbnail(source)
        return small.pixels, read_picture(source, small)


def mean_error(pixels, image):
    judge = np.asarray(Image.fromarray(image).resize(pixels.shape[1::-1], Image.Resampling.BOX), np.int64)
    return np.abs(pixels.astype(np.int64) - judge).mean()


def test_a_picture_has_as_many_pixels_as_people_want_to_see(tmp_path):
    coarse = np.random.default_rng(5).integers(0, 256, (22, 35, 3), dtype=np.uint8)
    image = np.asarray(
        Image.fromarray(coarse).resize((3500, 2200), Image.Resampling.BICUBIC)
    )  # no detail that averaging twice would change
    small, picture = seen(write_pyramid(tmp_path / "a.tif", image, tile=256, levels=1, mpp=0.5, compression="deflate"))
    assert max(small.shape) < 300
    assert picture.shape == (943, PICTURE_SIDE, 3)
    assert mean_error(picture, image) < 1


def test_a_small_image_is_its_own_picture(tmp_path):
    image = make_image(300, 400, 6)
    assert np.array_equal(seen(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1, mpp=0.5, compression="deflate"))[1], image)


@pytest.mark.parametrize("mpp", [None, 8.0])
def test_the_thumbnail_serves_where_it_is_fine_enough(tmp_path, mpp):
    small, picture = seen(write_pyramid(tmp_path / "a.tif", make_image(1600, 1700, 7), tile=256, levels=1, mpp=mpp))
    assert np.array_equal(picture, small)


def test_no_whole_image_is_read_for_a_picture_alone(tmp_path, monkeypatch):
    path = write_pyramid(tmp_path / "a.tif", make_image(1600, 1700, 7), tile=256, levels=1, mpp=0.5)
    monkeypatch.setattr(thumbnail, "PICTURE_PIXELS", 1600 * 1700 - 1)
    small, picture = seen(path)
    assert np.array_equal(picture, small)
    with open_source(str(path), SourceOptions()) as source:
        assert picture_bytes(source) == 0


def test_a_picture_takes_no_more_than_it_says(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", make_image(3000, 3500, 5), tile=256, levels=1, mpp=0.5)
    with open_source(str(path), SourceOptions()) as source:
        small = read_thumbnail(source)

        def work():  # in a thread of its own, whose scratch is then counted too
            with ThreadPoolExecutor(1) as pool:
                pool.submit(read_picture, source, small).result()

        tracemalloc.start()
        try:
            work()
            assert tracemalloc.get_traced_memory()[1] <= picture_bytes(source) + MIB // 4
        finally:
            tracemalloc.stop()
