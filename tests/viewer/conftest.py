"""What all tests of the viewer look at."""

import pytest

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run of two slides whose files are there."""
    folder = tmp_path_factory.mktemp("view")
    slides = [write_pyramid(folder / f"{name}.tif", make_image(2300, 3100, seed), levels=4) for seed, name in enumerate("ab")]
    embed(slides, folder / "out", tiles={"tissue": "otsu", "level": None, "mpp": 0.5})
    return folder / "out"
