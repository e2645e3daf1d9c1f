"""Overviews in a file beside a raster are its levels, where it has none of its own, and hold what rasterio reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling

from tests.support.images import make_image
from tests.support.rasters import NORTH_UP, cut, write_raster
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import Source, SourceOptions

IMAGE = make_image(600, 840)


def add_overviews(path: Path, factors: tuple[int, ...], *, external: bool = True, **options: Any) -> None:
    with rasterio.Env(TIFF_USE_OVR=external, **options), rasterio.open(path, "r+") as file:
        file.build_overviews(factors, Resampling.average)


def whole(source: Source, level: int) -> Any:
    size = source.info.levels[level].size
    return source.read_region(level, Region(0, 0, size.height, size.width))


@pytest.mark.parametrize(
    "options", [{}, {"compress": "deflate"}, {"interleave": "band"}, {"tiled": False, "blockxsize": None, "blockysize": 16}, {"nodata": 7}]
)
@pytest.mark.parametrize("over", [{}, {"COMPRESS_OVERVIEW": "LZW", "INTERLEAVE_OVERVIEW": "PIXEL"}])
def test_levels_are_what_rasterio_reads_of_the_overviews(tmp_path: Path, options: dict[str, Any], over: dict[str, Any]) -> None:
    path = write_raster(tmp_path / "a.tif", IMAGE, **options)
    with open_source(str(path), SourceOptions()) as source:
        alone = source.info.fingerprint
    add_overviews(path, (2, 4, 8), **over)
    assert (tmp_path / "a.tif.ovr").exists()
    with open_source(str(path), SourceOptions()) as source:
        assert [round(level.downsample) for level in source.info.levels] == [1, 2, 4, 8]
        assert source.info.fingerprint != alone
        assert "a.tif.ovr" in source.info.properties["tiff.files"]
        assert not source.info.warnings
        for level in range(1, 4):
            with rasterio.open(path, overview_level=level - 1) as file:
                judge = np.moveaxis(file.read(), 0, -1).copy()
                judge[(file.read_masks() == 0).all(axis=0)] = 255
                np.testing.assert_array_equal(whole(source, level), judge)


def test_values_of_bands_are_read_of_overviews(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=(512, 512, 4)).astype(np.float32)
    path = write_raster(tmp_path / "a.tif", samples)
    add_overviews(path, (2, 4))
    with open_source(str(path), SourceOptions(channels=(3, 0), normalise="none")) as source:
        for level in (1, 2):
            with rasterio.open(path, overview_level=level - 1) as file:
                np.testing.assert_array_equal(whole(source, level), np.moveaxis(file.read([4, 1]), 0, -1))


def test_overviews_of_its_own_count_before_those_beside_it(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", IMAGE)
    add_overviews(path, (2,))
    beside = (tmp_path / "a.tif.ovr").read_bytes()
    (tmp_path / "a.tif.ovr").unlink()
    add_overviews(path, (4,), external=False)
    (tmp_path / "a.tif.ovr").write_bytes(beside)
    with open_source(str(path), SourceOptions()) as source, rasterio.open(path) as file:
        assert [round(level.downsample) for level in source.info.levels[1:]] == file.overviews(1) == [4]


@pytest.mark.parametrize("fault", ["no tiff", "cut", "cut further on", "another image", "nothing"])
def test_what_is_no_overview_is_told_and_not_used(tmp_path: Path, fault: str) -> None:
    path, ovr = write_raster(tmp_path / "a.tif", IMAGE), tmp_path / "a.tif.ovr"
    add_overviews(path, (2,))
    data = ovr.read_bytes()
    if fault == "another image":
        write_raster(path, IMAGE[:100])
    said = {"no tiff": b"words " * 99, "cut": data[:6], "cut further on": data[:60], "another image": data, "nothing": b""}
    ovr.write_bytes(said[fault])
    with open_source(str(path), SourceOptions()) as source:
        assert (source.info.backend, len(source.info.levels)) == ("tiff", 1)
        assert [words for words in source.info.warnings if "a.tif.ovr" in words and "gdaladdo" in words]


def test_overviews_that_all_files_of_a_mosaic_have_are_its_levels(tmp_path: Path) -> None:
    picture = IMAGE[:512, :768]
    paths = cut(picture, {"a": (0, 0, 512, 384), "b": (0, 384, 512, 768)}, tmp_path, NORTH_UP)
    for path in paths:
        add_overviews(path, (2, 4))
    with open_source(f"mosaic://{tmp_path}", SourceOptions()) as source:
        assert [round(level.downsample) for level in source.info.levels] == [1, 2, 4]
        parts = []
        for path in paths:
            with rasterio.open(path, overview_level=0) as file:
                parts.append(np.moveaxis(file.read(), 0, -1))
        np.testing.assert_array_equal(whole(source, 1), np.concatenate(parts, axis=1))
