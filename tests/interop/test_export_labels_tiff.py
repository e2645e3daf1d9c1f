"""Label images as Cloud Optimized GeoTIFF, read back by rasterio."""

import numpy as np
import pytest
import zarr

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.interop.exports import export_slides

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import rowcol, xy  # noqa: E402


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_are_a_cloud_optimized_tiff_with_names_and_overviews(tmp_path):
    image = write_pyramid(tmp_path / "a.tif", make_image(700, 900, 2), compression="deflate", levels=1, mpp=0.5)
    head = {"kind": "segment", "model": "tests.support.dense_models:counting", "size": 128}
    tilestream.run(config(image, tmp_path / "out", encoder="none", tiles={"size": 128}, heads={"kinds": head}))
    assert list(export_slides(str(tmp_path / "out"), "cog", what="kinds", slide="a", out=str(tmp_path / "labels.tif")))
    stored = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    with rasterio.open(tmp_path / "labels.tif") as file:
        np.testing.assert_array_equal(file.read(1), stored)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags()["class_1"] == "class0"
        assert file.overviews(1)
        assert file.nodata == 0


@pytest.mark.parametrize(
    "turned", [(10, 0, 500_000, 0, -10, 5_000_000), (8, 6, 500_000, 6, -8, 5_000_000), (10, 0, 500_000, 0, 10, 4_900_000)]
)
@pytest.mark.parametrize(("size", "model"), [(128, "counting"), (192, "strided41")])
def test_labels_of_an_image_on_a_map_lie_where_it_does(tmp_path, turned, size, model):
    affine = rasterio.Affine(*turned)
    profile = {
        "driver": "GTiff",
        "height": 700,
        "width": 900,
        "count": 3,
        "dtype": "uint8",
        "photometric": "RGB",
        "crs": "EPSG:32633",
        "transform": affine,
    }
    with rasterio.open(tmp_path / "a.tif", "w", tiled=True, blockxsize=256, blockysize=256, **profile) as file:
        file.write(np.moveaxis(make_image(700, 900, 2), -1, 0))
    head = {"kind": "segment", "model": f"tests.support.dense_models:{model}", "size": size}
    tiles = {"size": 128, "level": 0, "tissue": "none"}
    tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", encoder="none", tiles=tiles, heads={"kinds": head}))
    list(export_slides(str(tmp_path / "out"), "cog", what="kinds", slide="a", out=str(tmp_path / "labels.tif")))
    with rasterio.open(tmp_path / "labels.tif") as file, rasterio.open(tmp_path / "a.tif") as image:
        assert file.crs == image.crs
        step = 4 if model == "strided41" else 1
        assert file.shape == (-(-700 // step), -(-900 // step))
        for row, col in ((0, 0), (17, 3), (file.height, file.width)):  # places of corners, held against the image's to a hundredth of a px
            there = rowcol(image.transform, *xy(file.transform, row, col, offset="ul"), op=float)
            assert np.ravel(there) == pytest.approx((row * step, col * step), abs=0.01)
