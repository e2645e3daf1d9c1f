"""The label image of a head as polygons: valid, of the label image's areas, in level-0 px. Judge: shapely."""

import gzip
import json

import numpy as np
import pytest
import shapely
import zarr

import tilestream
from tests.support.exported import export
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.errors import ConfigError
from tilestream.interop.exports import export_slides

CLASSES = ["class0", "class1", "class2", "class3"]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    write_pyramid(folder / "a.tif", make_image(900, 700, 1), levels=1, compression="deflate")
    head = {"kind": "segment", "model": "tests.support.dense_models:strided41", "size": 192}
    tilestream.run(config(folder / "a.tif", folder / "out", encoder="none", tiles={"size": 128}, heads={"kinds": head}))
    return folder / "out"


def read(path):
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["features"]


def test_polygons_have_the_areas_of_the_label_image(output, tmp_path):
    _, words = export(output, "geojson", what="kinds", slide="a", out=str(tmp_path / "a.geojson.gz"))
    features = read(tmp_path / "a.geojson.gz")
    assert words.startswith(f"a: {len(features)} regions -> ")
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    assert shapely.is_valid(shapes).all()
    labels = zarr.open_array(output / "a.zarr", path="labels/kinds/0", mode="r")[:]
    names = np.array([feature["properties"]["classification"]["name"] for feature in features])
    step = 900 / labels.shape[0]
    for number, name in enumerate(CLASSES, start=1):
        wanted = (labels == number).sum() * step**2
        assert shapely.area(shapes[names == name]).sum() == pytest.approx(wanted, rel=1e-3)
        told = sum(feature["properties"]["measurements"]["area_um2"] for feature in features if feature["properties"]["classification"]["name"] == name)  # fmt: skip
        assert told == pytest.approx(wanted * 0.25, rel=1e-3)
    assert {feature["properties"]["objectType"] for feature in features} == {"annotation"}
    assert shapely.total_bounds(shapes) == pytest.approx([0, 0, 700, 900], abs=2)


def test_formats_of_objects_are_not_those_of_labels(output):
    with pytest.raises(ConfigError, match="kinds leaves a label image, which are written by --to geojson"):
        list(export_slides(str(output), "annotation-store", what="kinds"))
