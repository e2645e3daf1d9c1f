"""Label images as Cloud Optimized GeoTIFF, read back by rasterio."""

import numpy as np
import pytest
import zarr

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.interop.exports import export_slides

rasterio = pytest.importorskip("rasterio")


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
