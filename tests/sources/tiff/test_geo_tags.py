"""Where GeoTIFFs lie, the odd ones too, is where rasterio says that they lie, on a disk and on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import tifffile

from tests.support.range_server import serving
from tests.support.rasters import NORTH_UP, PICTURE, write_raster
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions

SCALE, TIE = (33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)
MATRIX = (34264, "d", 16, (8.0, 6.0, 0.0, 6e5, 6.0, -8.0, 0.0, 5e6, *(0.0,) * 7, 1.0), True)
UTM, FOOT, KILOMETRE = (3072, 32633), (3076, 9002), (3076, 9036)


def keys(*told: tuple[int, int], kind: int = 1, point: bool = False) -> tuple[Any, ...]:
    entries = [(1024, kind), (1025, 2 if point else 1), *told]
    values = (1, 1, 0, len(entries), *(value for key, said in entries for value in (key, 0, 1, said)))
    return (34735, "H", len(values), values, True)


TAGS = {
    "scale": [SCALE, TIE, keys(UTM)],
    "negative_scale": [(33550, "d", 3, (10.0, -10.0, 0.0), True), TIE, keys(UTM)],
    "tie_inside": [SCALE, (33922, "d", 6, (5.0, 7.5, 0.0, 5e5, 5e6, 0.0), True), keys(UTM, point=True)],
    "matrix_at_centres": [MATRIX, keys(UTM, point=True)],
    "scale_and_matrix": [SCALE, TIE, MATRIX, keys(UTM)],
    "code_in_other_units": [SCALE, TIE, keys(UTM, FOOT)],
    "code_in_kilometres": [SCALE, TIE, keys(UTM, KILOMETRE)],
    "degrees": [
        (33550, "d", 3, (1e-4, 1e-4, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 12.0, 45.0, 0.0), True),
        keys((2048, 4326), kind=2),
    ],
}


@pytest.mark.parametrize("name", TAGS)
def test_tags_place_an_image_where_rasterio_does(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(64, 64), metadata=None, extratags=TAGS[name])
    with rasterio.open(path) as judge, open_source(str(path), SourceOptions()) as source:
        geo = source.info.geo
        assert geo is not None
        assert geo.transform == pytest.approx(tuple(judge.transform)[:6], rel=1e-12)
        assert pyproj.CRS.from_user_input(geo.crs).equals(pyproj.CRS.from_user_input(judge.crs), ignore_axis_order=True)
        if judge.crs.is_projected:
            side = np.hypot(judge.transform.a, judge.transform.d) * judge.crs.linear_units_factor[1]
            assert source.info.mpp == pytest.approx(side * 1e6)
        assert bool(source.info.warnings) == (name == "negative_scale")


CODELESS = {
    "metres": "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m",
    "feet": "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=us-ft",
    "mars": "+proj=longlat +a=3396190 +b=3376200 +no_defs",
    "local": 'LOCAL_CS["yard",UNIT["metre",1]]',
}


@pytest.mark.parametrize("name", CODELESS)
def test_a_crs_without_a_code_is_the_same_on_a_server(tmp_path: Path, name: str) -> None:
    path = write_raster(tmp_path / "a.tif", PICTURE, NORTH_UP, CODELESS[name])
    with (
        serving(tmp_path) as server,
        rasterio.open(path) as judge,
        open_source(str(path), SourceOptions()) as here,
        open_source(server.url("a.tif", "?sig=1"), SourceOptions()) as there,
    ):
        assert here.info.geo is not None
        assert pyproj.CRS.from_user_input(here.info.geo.crs).equals(pyproj.CRS.from_user_input(judge.crs), ignore_axis_order=True)
        assert (there.info.geo, there.info.mpp) == (here.info.geo, here.info.mpp)


RPC = (
    50844,
    "d",
    92,
    (-1.0, -1.0, 2000.0, 3000.0, 45.0, 12.0, 100.0, 2000.0, 3000.0, 0.1, 0.1, 500.0, *((0.0, 0.0, 1.0, *(0.0,) * 17) * 4)),
    True,
)


@pytest.mark.parametrize("placed", [False, True])
def test_coefficients_that_are_not_read_are_told_where_nothing_else_places_it(tmp_path: Path, placed: bool) -> None:
    path = tmp_path / "a.tif"
    tags = [RPC, *([SCALE, TIE, keys(UTM)] if placed else [])]
    tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(64, 64), metadata=None, extratags=tags)
    with rasterio.open(path) as judge, open_source(str(path), SourceOptions()) as source:
        assert judge.rpcs is not None
        assert (source.info.geo is not None) == placed
        assert [words[:34] for words in source.info.warnings] == ([] if placed else ["rational polynomial coefficients (R"[:34]])
