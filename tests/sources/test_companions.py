"""A pipe among the files of one image is refused by name; nothing waits for it."""

import os
import shutil

import numpy as np
import pytest
import zarr

from tests.sources.tiff.test_multi_file import write_channels
from tests.support.images import make_image
from tilestream.errors import InputError, ReadError
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

pytestmark = pytest.mark.timeout(60)


def dicom(folder, slides):
    shutil.copy(slides / "boxes_0.dcm", folder / "a.dcm")
    os.mkfifo(folder / "z.dcm")
    return folder / "a.dcm"


def mirax(folder, _):
    (folder / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    (folder / "a").mkdir()
    os.mkfifo(folder / "a" / "Slidedat.ini")
    return folder / "a.mrxs"


def hamamatsu(folder, _):
    (folder / "a.vms").write_text("[Virtual Microscope Specimen]\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=a.jpg\nMapFile=b.jpg\n")
    os.mkfifo(folder / "b.jpg")
    return folder / "a.vms"


def ome(folder, _):
    paths = write_channels(folder, make_image(64, 64, 1))
    paths[1].unlink()
    os.mkfifo(paths[1])
    return paths[0]


@pytest.mark.parametrize("make", [dicom, mirax, hamamatsu, ome])
def test_a_pipe_beside_a_file_is_refused(tmp_path, slides, make):
    with pytest.raises(InputError, match="is a FIFO"):
        open_source(str(make(tmp_path, slides)), SourceOptions())


@pytest.mark.parametrize("version", [2, 3])
def test_a_pipe_in_the_place_of_a_chunk_is_an_error_of_its_tiles(tmp_path, version):
    array = zarr.create_array(tmp_path / "a.zarr", data=np.ones((64, 64), np.uint8), chunks=(32, 32), zarr_format=version)
    assert array.shape == (64, 64)
    chunk = tmp_path / "a.zarr" / ("0.1" if version == 2 else "c/0/1")
    with open_source(str(tmp_path / "a.zarr"), SourceOptions()) as source:
        chunk.unlink()
        os.mkfifo(chunk)
        source.read_segment(0, 0, 0)
        with pytest.raises(ReadError, match="is not a file"):
            source.read_segment(0, 0, 1)
        with pytest.raises(ReadError, match="is not a file"):
            source.read_region(0, Region(0, 0, 64, 64))
    with pytest.raises(InputError, match="is not a file"):
        open_source(str(tmp_path / "a.zarr"), SourceOptions())
