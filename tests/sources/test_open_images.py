"""The images that a process keeps open: those used last, with the options they were asked for."""

from pathlib import Path

import pytest

from tests.support.images import make_image, write_pyramid
from tilestream.errors import InputError, OutageError
from tilestream.sources import open_source
from tilestream.sources.base import ImageAddress, SourceOptions
from tilestream.sources.open_images import OpenImages


@pytest.fixture
def paths(tmp_path):
    return [str(write_pyramid(tmp_path / f"{k}.tif", make_image(64, 64, k), tile=64, levels=1)) for k in range(3)]


def test_those_used_last_stay_open(paths):
    images = OpenImages(2)
    a, b, c = (ImageAddress(path, SourceOptions(), "") for path in paths)
    first, second = images.get(a), images.get(b)
    assert images.get(a) is first
    images.get(c)
    assert images.get(a) is first
    assert images.get(b) is not second


@pytest.mark.parametrize(
    "options", [SourceOptions(channels=(2, 1, 0)), SourceOptions(mpp=0.3, icc=True), SourceOptions(backend="openslide")]
)
def test_a_source_carries_its_options_wherever_it_goes(paths, options):
    images, image = OpenImages(1), ImageAddress(paths[0], options, "")
    source = images.get(image)
    images.get(ImageAddress(paths[1], SourceOptions(), ""))  # the first one is let go of
    again = open_source(source.opened_as.address, source.opened_as.options)
    assert source.opened_as.options == options
    assert again.info == source.info


def test_another_file_under_the_same_name_is_refused(paths):
    images = OpenImages(2)
    planned = images.get(ImageAddress(paths[0], SourceOptions(), "")).opened_as
    Path(paths[1]).replace(paths[0])
    with pytest.raises(InputError, match="changed while it was being read"):
        images.get(planned)


def test_a_file_that_was_there_and_is_gone_is_an_outage(paths):
    image = open_source(paths[0], SourceOptions()).opened_as
    Path(paths[0]).unlink()
    with pytest.raises(OutageError, match="its storage does not answer: the file is gone"):
        OpenImages(2).get(image)
