"""Fixtures of whole runs."""

import pytest
import tifffile

from tests.support.faults import SIDE
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import SECTIONS
from tests.support.runs import embed, opened


@pytest.fixture
def say(request, capsys):
    def tell(fault, promised, seen):
        with capsys.disabled():
            if request.config.getoption("capture") == "no":
                print(f"\n{fault:<48} | {promised:<52} | {seen}", end="")

    return tell


@pytest.fixture
def image(tmp_path):
    """A JPEG file of 5 x 5 tiles of 128 px, and where they lie."""
    path = write_pyramid(tmp_path / "a.tif", make_image(SIDE, SIDE, 3), tile=128, levels=1)
    with tifffile.TiffFile(path) as tif:
        return path, tif.pages[0].dataoffsets, tif.pages[0].databytecounts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An image, and the output of a run with context and pooling that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_pyramid(folder / "a.tif", make_image(800, 700, 5), tile=128, levels=1)
    embed(path, folder / "out", compute={"shard_tiles": 10}, **SECTIONS)
    return path, opened(folder / "out", "a")
