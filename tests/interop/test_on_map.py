"""GeoTIFF in, places on a map out: rasterio and pyproj say where each tile is."""

from __future__ import annotations

import json
import struct
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import tifffile
import zarr
from rasterio.transform import Affine

from tests.support.images import make_image
from tests.support.runs import embed, opened
from tilestream.errors import ConfigError, IncompleteError, InputError
from tilestream.interop.exports import export_slides
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.facts.describe import describe_image

NORTH_UP, SOUTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000), Affine(10, 0, 500_000, 0, 10, 4_900_000)
TURNED = Affine(8, 6, 500_000, 6, -8, 5_000_000)


def write(path: Path, crs: Any, transform: Affine, **options: Any) -> Path:
    profile = {
        "driver": "GTiff",
        "height": 200,
        "width": 300,
        "count": 3,
        "dtype": "uint8",
        "crs": crs,
        "transform": transform,
        "photometric": "RGB",
    }
    with rasterio.open(path, "w", **profile, **options) as file:
        file.write(np.moveaxis(make_image(200, 300), -1, 0))
    return path


CASES = [
    ("EPSG:32633", NORTH_UP, 10e6),
    ("EPSG:32633", SOUTH_UP, 10e6),
    ("EPSG:32633", TURNED, 10e6),
    ("EPSG:3857", NORTH_UP, 10e6),
    ("EPSG:2263", Affine(2, 0, 980_000, 0, -2, 200_000), 2 * 0.3048006e6),
    ("EPSG:4326", Affine(1e-4, 0, 12.5, 0, -1e-4, 45.5), None),
    ("+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m", NORTH_UP, 10e6),
]


@pytest.mark.parametrize(("crs", "transform", "mpp"), CASES)
def test_the_place_is_rasterios(tmp_path: Path, crs: str, transform: Affine, mpp: float | None) -> None:
    path = write(tmp_path / "a.tif", crs, transform)
    with open_source(str(path), SourceOptions()) as source, rasterio.open(path) as judge:
        geo = source.info.geo
        assert geo is not None
        assert geo.transform == pytest.approx(tuple(judge.transform)[:6], rel=1e-12)
        assert pyproj.CRS.from_user_input(geo.crs).equals(pyproj.CRS.from_user_input(judge.crs), ignore_axis_order=True)
        assert geo.south_up == (judge.transform.e > 0)
        assert source.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-6))
    facts = describe_image(str(path))["properties"]
    words = {SOUTH_UP: "south-up", TURNED: "turned: rows run 36.87° from the x axis"}.get(transform, "north-up")
    assert facts["geo.orientation"].startswith(words)
    assert facts["geo.crs"] not in ("", "unknown")


def test_control_points_are_told_and_not_taken_for_a_place(tmp_path: Path) -> None:
    path, corners = tmp_path / "a.tif", ((0, 0), (300, 0), (0, 200))
    points = tuple(float(v) for col, row in corners for v in (col, row, 0, 9 + col / 1e4, 50 - row / 1e4, 0))
    keys = (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)
    tags = [(33922, "d", len(points), points, True), (34735, "H", len(keys), keys, True)]
    tifffile.imwrite(path, make_image(200, 300, 1), photometric="rgb", tile=(64, 64), metadata=None, extratags=tags)
    with rasterio.open(path) as judge:
        assert [(point.col, point.row) for point in judge.gcps[0]] == list(corners)
    with open_source(str(path), SourceOptions()) as source:
        assert source.info.geo is None
        (warning,) = source.info.warnings
        assert warning.startswith("3 ground control points say where it lies on a map, and they are not read")


@pytest.mark.parametrize("point", [True, False])
def test_tie_points_at_centres_are_moved_to_corners(tmp_path: Path, point: bool) -> None:
    path = write(tmp_path / "a.tif", "EPSG:32633", NORTH_UP)
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point" if point else "Area")
    with open_source(str(path), SourceOptions()) as source, rasterio.open(path) as judge:
        assert source.info.geo is not None
        assert source.info.geo.transform == pytest.approx(tuple(judge.transform)[:6])


def test_the_store_says_where_pixels_and_tiles_lie(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", "EPSG:32633", SOUTH_UP)
    embed(str(path), tmp_path / "out", tiles={"size": 64, "stride": 32})
    root = zarr.open_group(tmp_path / "out" / "a.zarr", mode="r")
    with rasterio.open(path) as judge:
        assert root.attrs["proj:code"] == "EPSG:32633"
        assert root.attrs["spatial:transform"] == list(judge.transform)[:6]
        assert root.attrs["spatial:shape"] == [200, 300]
        assert root.attrs["spatial:bbox"] == [500_000, 4_900_000, 503_000, 4_902_000]
        assert {each["name"] for each in root.attrs["zarr_conventions"]} == {"proj", "spatial"}
        obs, table = opened(tmp_path / "out", "a").obs, root["tables/tiles"].attrs
        assert table["encoding-type"] == "anndata"
        assert table["spatial:dimensions"] == ["row", "col"]
        for row, col, y, x in zip(obs.row, obs.col, obs.y, obs.x, strict=True):
            assert Affine(*table["spatial:transform"]) @ (col, row) == judge.transform @ (x, y)


def test_a_slide_is_on_no_map(tmp_path: Path, slides: Path) -> None:
    embed(slides / "CMU-1-Small-Region.svs", tmp_path / "out", tiles={"size": 512})
    assert set(zarr.open_group(tmp_path / "out" / "CMU-1-Small-Region.zarr", mode="r").attrs) == {"tilestream"}
    assert "geo" not in opened(tmp_path / "out", "CMU-1-Small-Region").source


def corners(geometry: bytes) -> np.ndarray:
    assert struct.unpack_from("<BIII", geometry) == (1, 3, 1, 5)
    return np.frombuffer(geometry, "<f8", offset=13).reshape(5, 2)


@pytest.mark.parametrize(("crs", "transform", "mpp"), [CASES[0], CASES[1], CASES[5]])
def test_exports_carry_the_map(tmp_path: Path, crs: str, transform: Affine, mpp: float | None) -> None:
    del mpp
    path = write(tmp_path / "a.tif", crs, transform)
    embed(str(path), tmp_path / "out", tiles={"size": 100})
    obs = opened(tmp_path / "out", "a").obs
    list(export_slides(str(tmp_path / "out"), "parquet", slide="a", out=str(tmp_path / "a.parquet")))
    list(export_slides(str(tmp_path / "out"), "geojson", slide="a", out=str(tmp_path / "a.geojson")))
    table = pq.read_table(tmp_path / "a.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
    assert pyproj.CRS.from_json_dict(geo["crs"]).equals(pyproj.CRS(crs))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    turn = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    assert len(features) == table.num_rows == len(obs) == 6
    for k, (y, x) in enumerate(zip(obs.y, obs.x, strict=True)):
        here = {transform @ (x + dx, y + dy) for dx in (0, 100) for dy in (0, 100)}
        assert {tuple(corner) for corner in corners(table["geometry"][k].as_py()).tolist()} == here
        ring = features[k]["geometry"]["coordinates"][0]
        np.testing.assert_allclose(sorted(map(tuple, ring[:4])), sorted(turn.transform(*corner) for corner in here), atol=1e-9)
        assert all(-180 <= lon <= 180 and -90 <= lat <= 90 for lon, lat in ring)
    assert "tissue" not in (tmp_path / "a.geojson").read_text().lower()


def test_without_pyproj_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(str(write(tmp_path / "a.tif", "EPSG:32633", NORTH_UP)), tmp_path / "out", tiles={"size": 100})
    monkeypatch.setitem(sys.modules, "pyproj", None)
    for form in ("parquet", "geojson"):
        with pytest.raises(ConfigError, match=r"needs the package pyproj.*pip install 'tilestream\[geo\]'"):
            list(export_slides(str(tmp_path / "out"), form, slide="a", out=str(tmp_path / f"a.{form}")))


ODD_MAPS = {
    "unknown": ("", "on EPSG:1, which PROJ does not know", {"geoparquet", "parquet", "cog", "geojson", "stac"}),
    "local": ('LOCAL_CS["yard",UNIT["metre",1]]', "cannot be turned into degrees of WGS 84", {"geojson", "stac"}),
    "mars": ("+proj=longlat +a=3396190 +b=3376200 +no_defs", "cannot be turned into degrees of WGS 84", {"geojson", "stac"}),
    "nowhere": (None, "lies on no map", {"geoparquet", "cog", "geo-zarr", "stac"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_MAPS)
def test_a_map_that_a_format_cannot_hold_keeps_no_other_slide_back(tmp_path: Path, name: str) -> None:
    crs, words, refused = ODD_MAPS[name]
    write(tmp_path / "b.tif", "EPSG:32633", NORTH_UP)
    if crs == "":
        tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
        keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 1)
        tags = [*tags, (34735, "H", len(keys), keys, True)]
        tifffile.imwrite(tmp_path / "a.tif", make_image(200, 300), photometric="rgb", tile=(64, 64), metadata=None, extratags=tags)
    elif crs is None:
        tifffile.imwrite(tmp_path / "a.tif", make_image(200, 300), photometric="rgb", tile=(64, 64), metadata=None)
    else:
        write(tmp_path / "a.tif", crs, NORTH_UP)
    for slide in "ab":
        embed(str(tmp_path / f"{slide}.tif"), tmp_path / "out", tiles={"size": 64})
    for format_name in ("geoparquet", "parquet", "cog", "geo-zarr", "stac", "geojson", "csv"):
        lines: list[str] = []
        told = f"1 of 2 slides left out: a: .*{words}.*[Ee]xport it as"
        with pytest.raises(IncompleteError, match=told) if format_name in refused else nullcontext():
            lines.extend(export_slides(str(tmp_path / "out"), format_name))
        with pytest.raises(InputError, match=f"^a: .*{words}") if format_name in refused else nullcontext():
            list(export_slides(str(tmp_path / "out"), format_name, slide="a", force=True))
        assert [line[:2] for line in lines] == (["b:"] if format_name in refused else ["a:", "b:"])
