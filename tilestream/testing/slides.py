"""Openly licensed slides for tests, fetched once and known by their checksums."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tilestream.errors import InputError

FOLDER = "TILESTREAM_TEST_DATA"
"""Environment variable: a folder whose `slides/` holds them already."""


@dataclass(frozen=True)
class TestSlide:
    """A file that anybody may fetch."""

    __test__ = False  # no test class, whatever its name says

    url: str
    sha256: str
    licence: str
    attribution: str


TEST_SLIDES = {
    "CMU-1-Small-Region.svs": TestSlide(
        "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/CMU-1-Small-Region.svs",
        "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7", "CC0-1.0", "OpenSlide test data, Carnegie Mellon University",
    ),
    "test3-DAPI-2-387.ndpi": TestSlide(
        "https://raw.githubusercontent.com/Booritas/slideio-tutorial/master/images/test3-DAPI-2-(387).ndpi",
        "9294d31f304f20ef1df1e08650d3f225b8ed44db8b2dc0d52f584449f85bdca2", "CC-BY-4.0", "Manuel Stritt",
    ),
    "RGB.byte.tif": TestSlide(
        "https://raw.githubusercontent.com/rasterio/rasterio/main/tests/data/RGB.byte.tif",
        "d7cbe932c7ed74a627706a9e9df99f706df3e5abc7d45a49e9d00677a6b09eb4", "BSD-3-Clause", "rasterio's tests",
    ),
    "cogeo.tif": TestSlide(
        "https://raw.githubusercontent.com/rasterio/rasterio/main/tests/data/cogeo.tif",
        "5ed4ebcb1681573d4c23e10ecb528513d2c999e0d5b42456b3dd27a0be0b8622", "BSD-3-Clause", "rasterio's tests",
    ),
    "rgb_deflate.tif": TestSlide(
        "https://raw.githubusercontent.com/rasterio/rasterio/main/tests/data/rgb_deflate.tif",
        "498909dfa648c4f03ac8e5e541a8c203579c2aa640308f2b1f0e6968b95319c8", "BSD-3-Clause", "rasterio's tests",
    ),
    "boxes.tiff": TestSlide(
        "https://raw.githubusercontent.com/openslide/openslide-python/main/tests/fixtures/boxes.tiff",
        "785517d0bcd91745f84faf85c7afa9541aac051ee78fdcd668749c1f506183fc", "LGPL-2.1-only", "openslide-python's tests",
    ),
    "multi-channel-z-series.ome.tif": TestSlide(
        "https://downloads.openmicroscopy.org/images/OME-TIFF/2016-06/bioformats-artificial/multi-channel-z-series.ome.tif",
        "f8cebdb6036060e433576bd0303f6f632fac6f2a71f2e7ceec08a13f34f69cba", "CC-BY-4.0", "Open Microscopy Environment",
    ),
}  # fmt: skip
"""By file name."""


def fetch_slide(name: str) -> Path:
    """Path of a test slide: in the folder of `TILESTREAM_TEST_DATA`, else in the user's cache, else fetched there through pooch.

    Parameters
    ----------
    name : str
        A key of `TEST_SLIDES`, or a file of that folder.

    Returns
    -------
    path : Path
        A local file whose bytes have the checksum that is expected.

    Raises
    ------
    InputError
        No such slide is known, there is no network, or what came has another checksum.
    """
    folder = os.environ.get(FOLDER)
    if folder and (local := Path(folder) / "slides" / name).is_file():
        return local
    if name not in TEST_SLIDES:
        raise InputError(f"{name}: no test slide of this name can be fetched. Known are {', '.join(TEST_SLIDES)}; or set {FOLDER}.")
    slide = TEST_SLIDES[name]
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: fetching it needs the package pooch: pip install 'tilestream[test]'; or set {FOLDER} to a folder that has it."
        ) from error
    try:
        found = pooch.retrieve(slide.url, f"sha256:{slide.sha256}", fname=name, path=pooch.os_cache("tilestream"), progressbar=False)
    except (OSError, ValueError) as error:  # no network; another checksum
        raise InputError(
            f"{name}: cannot be fetched from {slide.url}: {error}. Set {FOLDER} to a folder that has slides/{name}."
        ) from error
    return Path(found)
