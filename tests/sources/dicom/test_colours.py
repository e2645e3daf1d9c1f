"""Colours of DICOM slides: what a JPEG decoder makes of the frames, whatever the header says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.encaps import generate_frames

from tests.support.dicom import cut_frames, encode_jpeg, write_series
from tests.support.images import make_image, pyramid
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.testing.sources import Image

IMAGE = make_image(150, 200)
BASELINE = "1.2.840.10008.1.2.4.50"


def decoded(path: Path) -> Image:
    """All of a file's level by Pillow, frame by frame as pydicom finds them."""
    data = pydicom.dcmread(path)
    rows, cols = -(-data.TotalPixelMatrixRows // 64), -(-data.TotalPixelMatrixColumns // 64)
    out = np.zeros((rows * 64, cols * 64, 3), np.uint8)
    for k, frame in enumerate(generate_frames(data.PixelData, number_of_frames=data.NumberOfFrames)):
        y, x = k // cols * 64, k % cols * 64
        out[y : y + 64, x : x + 64] = np.asarray(Pillow.open(io.BytesIO(frame)).convert("RGB"))
    return out[: data.TotalPixelMatrixRows, : data.TotalPixelMatrixColumns]


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 0, "progressive": False, "optimize": True}])
def test_jfif_frames_are_ycc_whatever_the_header_says(tmp_path: Path, photometric: str, options: dict[str, object]) -> None:
    levels = pyramid(IMAGE, 2)
    frames = [[encode_jpeg(tile, **options) for tile in cut_frames(pixels, 64)] for pixels in levels]
    paths = write_series(tmp_path, levels, frames=frames, photometric=photometric, syntax=BASELINE)
    with open_source(str(paths[0]), SourceOptions()) as source:
        assert [("JFIF" in words) for words in source.info.warnings] == ([True] if photometric == "RGB" else [])
        for k, path in enumerate(paths):
            size = source.info.levels[k].size
            np.testing.assert_array_equal(source.read_region(k, Region(0, 0, size.height, size.width)), decoded(path))
        assert (source.read_region(0, Region(-5, -5, 5, 5)) == 255).all()


def test_frames_that_are_rgb_stay_rgb(tmp_path: Path) -> None:
    frames = [[encode_jpeg(tile, keep_rgb=True) for tile in cut_frames(IMAGE, 64)]]
    path = write_series(tmp_path, [IMAGE], frames=frames, syntax=BASELINE)[0]
    assert b"JFIF" not in frames[0][0][:20]
    with open_source(str(path), SourceOptions()) as source:
        assert source.info.warnings == ()
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 150, 200)), decoded(path))


def test_the_series_is_asked_not_the_overview(tmp_path: Path) -> None:
    frames = [[encode_jpeg(tile) for tile in cut_frames(IMAGE, 64)]]
    paths = write_series(tmp_path, [IMAGE], frames=frames, syntax=BASELINE, overview=True)
    with open_source(str(paths[1]), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 150, 200)), decoded(paths[0]))
