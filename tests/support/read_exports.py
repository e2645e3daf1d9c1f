"""Open exports with the programs that they are for, and hold every place against the tiles'. Runs in the readers' own environment.

    python read_exports.py EXPECTED.json

The file names the exports of one slide and what they should hold; see `test_export_readers.py`. Ends with an AssertionError where one is wrong.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import zarr
from shapely import contains_xy, union_all
from shapely.geometry import box, shape

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

import spatialdata  # noqa: E402
from ome_zarr.io import parse_url  # noqa: E402
from ome_zarr.reader import Reader  # noqa: E402
from ome_zarr_models.v05 import Image, ImageLabel  # noqa: E402
from spatialdata.transformations import get_transformation  # noqa: E402


def affine(element):
    """(3, 3) from x, y of an element to x, y in level-0 px."""
    return get_transformation(element, to_coordinate_system="global").to_affine_matrix(("x", "y"), ("x", "y"))


def check_spatialdata(path, told):
    found = spatialdata.read_zarr(path)
    table, tiles = found.tables["tiles"], np.array(told["tiles"], np.int64).reshape(-1, 4)
    assert set(found.labels) == set(told["labels"])
    assert set(found.images) == set(told["images"])
    assert set(found.shapes) == ({"tile_squares"} if len(tiles) else set())
    assert table.n_obs == len(tiles)
    for name in [*found.labels, *found.images]:
        raster = found[name]
        height, width = raster.shape[-2:]
        corner = affine(raster) @ [width, height, 1]
        assert (corner[:2] >= [told["width"] - told["side"], told["height"] - told["side"]]).all(), f"{name} ends at {corner}"
    if not len(tiles):
        return
    element, matched = spatialdata.match_element_to_table(found, "tile_squares", "tiles")
    squares = element["tile_squares"]
    assert len(matched) == len(squares) == len(tiles)
    assert squares.index.tolist() == table.obs["tile_id"].tolist()
    moved = spatialdata.transform(squares, to_coordinate_system="global")
    bounds = moved.bounds.to_numpy()
    assert np.allclose(bounds[:, :2], tiles[:, 2:], atol=1e-6)
    assert np.allclose(bounds[:, 2:], tiles[:, 2:] + told["side"], atol=1e-6)
    assert moved.is_valid.all()
    if "tile_grid" in found.labels:
        labels = np.asarray(found["tile_grid"])
        assert np.array_equal(labels[tiles[:, 0], tiles[:, 1]], table.obs["tile_id"])
        assert np.count_nonzero(labels) == len(tiles)
        assert_centres(affine(found["tile_grid"]), tiles, told["side"], 0.5, 1.0)
    if "tissue" in found.labels:
        assert np.array_equal(np.asarray(found["tissue"]), np.load(told["mask"]))
    values = np.asarray(table.X)
    assert np.array_equal(np.flatnonzero(~np.isfinite(values).all(axis=1)), told["failed"])


def assert_centres(matrix, tiles, side, middle, length):
    """Whether pixels (row, col), whose middle is at `middle`, lie within a pixel of level 0 of the centres of their tiles."""
    places = np.stack([tiles[:, 1] + middle, tiles[:, 0] + middle, np.ones(len(tiles))]).astype(float)
    assert np.abs((matrix @ places)[:2].T / length - (tiles[:, 2:] + side / 2)).max() <= 1


def check_ome_zarr(path, told):
    image = Image.from_zarr(zarr.open_group(path, mode="r"))
    label = ImageLabel.from_zarr(zarr.open_group(f"{path}/labels/tissue", mode="r"))
    assert label.attributes.ome.image_label.source.image == "../../"
    tiles = np.array(told["tiles"], np.int64).reshape(-1, 4)
    image_node, *others = Reader(parse_url(path))()
    (label_node,) = (node for node in others if node.zarr.path.rstrip("/").endswith("tissue"))
    for node in (image_node, label_node):
        for level, (data, steps) in enumerate(zip(node.data, node.metadata["coordinateTransformations"], strict=True)):
            by_kind = {step["type"]: step[step["type"]] for step in steps}
            (step_y, step_x), (y, x) = by_kind["scale"][-2:], by_kind["translation"][-2:]
            matrix = np.array([[step_x, 0, x], [0, step_y, y], [0, 0, 1]])
            if level == 0 and len(tiles):
                assert_centres(matrix, tiles, told["side"], 0.0, told["mpp"])
            corner = matrix @ [-0.5, -0.5, 1]  # every level begins where the finest one does
            assert np.allclose(corner[:2] / told["mpp"], (told["side"] - told["step"]) / 2, atol=1e-6)
            assert data.shape[-2:] == tuple(-(-n // 2**level) for n in told["grid"])
    good = np.delete(tiles, told["failed"], axis=0)
    pixels = np.asarray(zarr.open_group(path, mode="r")["0"])
    assert np.isfinite(pixels[:, good[:, 0], good[:, 1]]).all()
    assert np.isfinite(pixels).sum() == 3 * len(good)
    units = [axis.unit for axis in image.attributes.ome.multiscales[0].axes]
    assert units == [None, "micrometer", "micrometer"]


def check_geojson(path, told):
    features = json.loads(Path(path).read_text())["features"]
    tiles = np.array(told["tiles"], np.int64).reshape(-1, 4)
    by_kind = {"annotation": [], "tile": []}
    for feature in features:
        geometry = shape(feature["geometry"])
        assert geometry.is_valid, geometry
        assert geometry.area > 0
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
        by_kind[feature["properties"]["objectType"]].append(geometry)
    assert len(by_kind["tile"]) == len(tiles)
    y, x = told["corner"]
    for geometry, tile in zip(by_kind["tile"], tiles.tolist(), strict=True):
        assert np.allclose(geometry.bounds, [tile[2] - x, tile[3] - y, tile[2] - x + told["side"], tile[3] - y + told["side"]])
    whole = box(-x, -y, told["width"] - x + told["downsample"], told["height"] - y + told["downsample"])
    assert all(whole.covers(piece) for piece in by_kind["annotation"])
    mask = np.load(told["mask"])
    at_y, at_x = ((places + 0.5) * told["downsample"] - start for places, start in zip(np.indices(mask.shape), (y, x), strict=True))
    assert np.array_equal(contains_xy(union_all(by_kind["annotation"]), at_x, at_y), mask)  # the middle of each px of the mask


CHECKS = {"spatialdata": check_spatialdata, "ome-zarr": check_ome_zarr, "geojson": check_geojson}


def main():
    told = json.loads(Path(sys.argv[1]).read_text())
    for name, path in told["exports"].items():
        CHECKS[name](path, told)
        print(f"{name}: ok")


if __name__ == "__main__":
    main()
