"""Embeddings on a map: rasterio and geopandas read what is written, and say that every tile lies where it does, to a hundredth of a pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import zarr
from rasterio.transform import Affine

from tests.support.rasters import HOLED, NORTH_UP, PICTURE, QUARTERS, SOUTH_UP, TURNED, cut, write_raster
from tests.support.runs import embed, opened
from tilestream.errors import ConfigError, InputError
from tilestream.interop.exports import export_slides

HUNDREDTH = 0.01
LAEA = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m"
DEGREES = Affine(1e-4, 0, 12.5, 0, -1e-4, 45.5)
CASES: dict[str, tuple[Any, Affine, dict[str, Any], float]] = {
    "north_up": ("EPSG:32633", NORTH_UP, {}, 1),
    "south_up": ("EPSG:32633", SOUTH_UP, {}, 1),
    "turned": ("EPSG:32633", TURNED, {}, 1),
    "without_a_code": (LAEA, NORTH_UP, {}, 1),
    "degrees": ("EPSG:4326", DEGREES, {}, 1),
    "feet": ("EPSG:2263", Affine(2, 0, 980_000, 0, -2, 200_000), {}, 1),
    "nodata": ("EPSG:32633", NORTH_UP, {"nodata": 0}, 1),
    "mosaic": ("EPSG:32633", SOUTH_UP, QUARTERS, 1),
    "mosaic_with_holes": (LAEA, NORTH_UP, HOLED, 1),
    "overlapping_tiles": ("EPSG:32633", NORTH_UP, {}, 0.5),
}


class Made:
    """One slide of tiles of 50 px whose vectors are what `mean_rgb` says, and what is known of its places by rasterio alone."""

    def __init__(self, folder: Path, name: str) -> None:
        crs, self.transform, boxes, overlap = CASES[name]
        picture = PICTURE.copy()
        if boxes == {"nodata": 0}:
            picture[100:200, 100:260] = 0
        if name.startswith("mosaic"):
            cut(picture, boxes, folder / "a", self.transform, crs=crs)
            image = f"mosaic://{folder / 'a'}"
        else:
            image = str(write_raster(folder / "a.tif", picture, self.transform, crs, **boxes))
        self.crs = pyproj.CRS.from_user_input(crs)
        self.output = folder / "out"
        embed(image, self.output, tiles={"size": 50, "stride": int(50 * overlap)})
        self.slide = opened(self.output, "a")
        self.stride = int(50 * overlap)

    def export(self, name: str, suffix: str) -> Path:
        """Where `export` wrote it."""
        (words,) = export_slides(str(self.output), name, slide="a")
        path = self.output / "exports" / name / f"a{suffix}"
        assert str(path) in words
        return path


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), request.param)


def pixels_apart(transform: Affine, a: Any, b: Any) -> float:
    """How far points in units of the map lie from each other, in pixels."""
    inverse = ~transform
    here, there = (np.array([inverse @ tuple(point) for point in np.asarray(points).reshape(-1, 2)]) for points in (a, b))
    return float(np.abs(here - there).max())


def test_geopandas_reads_footprints_where_tiles_lie(made: Made) -> None:
    frame = geopandas.read_parquet(made.export("geoparquet", ".parquet"))
    obs = made.slide.obs
    assert pyproj.CRS(frame.crs).equals(made.crs, ignore_axis_order=True)
    assert list(frame.id) == list(obs.index)
    for k, (y, x) in enumerate(zip(obs.y, obs.x, strict=True)):
        wanted = [made.transform @ (x + dx, y + dy) for dx, dy in ((0, 0), (50, 0), (50, 50), (0, 50), (0, 0))]
        assert pixels_apart(made.transform, shapely.get_coordinates(frame.geometry[k]), wanted) < HUNDREDTH
    np.testing.assert_array_equal(np.stack(frame.embedding), made.slide.embeddings[:].astype(np.float32))
    near = geopandas.read_parquet(made.output / "exports" / "geoparquet" / "a.parquet", bbox=tuple(frame.geometry[0].bounds))
    assert 0 < len(near) < len(frame)  # by the column bbox


def test_rasterio_reads_a_pixel_a_tile_and_values_to_half_a_step(made: Made) -> None:
    obs, vectors = made.slide.obs, made.slide.embeddings[:].astype(float)
    with rasterio.open(made.export("cog", ".tif")) as file:
        assert file.dtypes == ("int8",) * vectors.shape[1]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert pyproj.CRS.from_user_input(file.crs).equals(made.crs, ignore_axis_order=True)
        stored = file.read(masked=True)
        for k, (row, col, y, x) in enumerate(zip(obs.row, obs.col, obs.y, obs.x, strict=True)):
            assert pixels_apart(made.transform, file.xy(row, col), made.transform @ (x + 25, y + 25)) < HUNDREDTH
            steps = np.array(file.scales)
            assert (np.abs(stored[:, row, col] * steps + file.offsets - vectors[k]) <= steps / 2 * 1.001).all()
        held = np.zeros(stored.shape[1:], bool)
        held[obs.row, obs.col] = True
        np.testing.assert_array_equal(~np.ma.getmaskarray(stored).any(axis=0), held)
        assert file.tags()["model"].startswith("urn:tilestream:encoder:")


def test_the_cube_says_its_place_by_the_conventions(made: Made) -> None:
    root = zarr.open_group(made.export("geo-zarr", ".geo.zarr"), mode="r")
    about, obs = dict(root.attrs), made.slide.obs
    assert {each["name"] for each in about["zarr_conventions"]} == {"proj", "spatial", "geoemb:"}
    code = about.get("proj:code")
    assert (code is None) == (made.crs.to_epsg() is None)
    assert pyproj.CRS.from_user_input(code or about["proj:wkt2"]).equals(made.crs, ignore_axis_order=True)
    cells = Affine(*about["spatial:transform"])
    array = root["embeddings"]
    assert array.metadata.dimension_names == ("embedding", "y", "x")
    assert tuple(about["spatial:shape"]) == array.shape[1:]
    values = array[:]
    for k, (row, col, y, x) in enumerate(zip(obs.row, obs.col, obs.y, obs.x, strict=True)):
        centre = cells @ (col + 0.5, row + 0.5)
        assert pixels_apart(made.transform, centre, made.transform @ (x + 25, y + 25)) < HUNDREDTH
        np.testing.assert_array_equal(values[:, row, col], made.slide.embeddings[k])
        if "x" in root:
            assert (root["x"][col], root["y"][row]) == pytest.approx(centre, abs=1e-9)
    assert np.isfinite(values).all(axis=0).sum() == len(obs)
    assert ("x" in root) == (made.transform.b == 0)
    wanted = {"geoemb:type": "chip", "geoemb:dimensions": values.shape[0], "geoemb:data_type": "float32"}
    assert wanted.items() <= about.items()
    assert about["geoemb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [50, 50], "stride": [made.stride] * 2}
    (source,) = about["geoemb:source_data"]
    assert source.startswith(("file:///", "mosaic:///"))
    metres = made.crs.axis_info[0].unit_conversion_factor if made.crs.is_projected else None
    gsd = None if metres is None else made.stride * metres * np.hypot(made.transform.a, made.transform.d)
    assert about.get("geoemb:gsd") == (None if gsd is None else pytest.approx(gsd, rel=1e-6))


def test_the_item_lies_where_the_image_does(made: Made) -> None:
    path = made.export("stac", ".json")
    item = json.loads(path.read_text())
    turn = pyproj.Transformer.from_crs(made.crs, "EPSG:4326", always_xy=True)
    height, width = made.slide.size.height, made.slide.size.width
    corners = [turn.transform(*(made.transform @ corner)) for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    shape = shapely.geometry.shape(item["geometry"])
    assert shapely.Polygon(corners).equals_exact(shape, 1e-9, normalize=True)
    assert shape.exterior.is_ccw
    assert shapely.box(*item["bbox"]).buffer(1e-12).covers(shape)
    properties = item["properties"]
    assert (properties["emb:type"], properties["emb:dimensions"]) == ("chip", made.slide.embeddings.shape[1])
    assert ("proj:code" in properties) != ("proj:wkt2" in properties)
    assert {link["rel"] for link in item["links"]} == {"emb:model", "emb:source-data"}
    assert (path.parent / item["assets"]["embeddings"]["href"]).resolve() == (made.output / "a.zarr").resolve()
    assert properties["datetime"].endswith("Z")


def test_the_list_of_slides_says_when_an_image_was_taken(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", PICTURE)
    (tmp_path / "slides.csv").write_text("path,datetime\na.tif,2026-03-10T12:00:00+02:00\n")
    embed(tmp_path / "slides.csv", tmp_path / "out", tiles={"size": 100})
    (words,) = export_slides(str(tmp_path / "out"), "stac", out=str(tmp_path / "a.json"), slide="a")
    assert "datetime" not in words
    assert json.loads((tmp_path / "a.json").read_text())["properties"]["datetime"] == "2026-03-10T10:00:00Z"
    (tmp_path / "slides.csv").write_text("path,datetime,id\na.tif,last week,b\n")
    embed(tmp_path / "slides.csv", tmp_path / "out", tiles={"size": 100})
    with pytest.raises(InputError, match="the column datetime of the list of slides says 'last week'"):
        list(export_slides(str(tmp_path / "out"), "stac", slide="b"))


@pytest.mark.parametrize("name", ["geoparquet", "cog", "geo-zarr", "stac"])
def test_what_lies_on_no_map_is_refused(tmp_path: Path, name: str) -> None:
    embed("sample://he?width=512&height=512", tmp_path / "out", tiles={"size": 256, "tissue": "none"})
    with pytest.raises(InputError, match=r"its image lies on no map\. Export it as parquet"):
        list(export_slides(str(tmp_path / "out"), name))
    with pytest.raises(ConfigError, match=f"slide: is for --to .*, not {name}"):
        list(export_slides(str(tmp_path / "out"), name, what="slide"))
