"""Answers for tiles and slides, exported: read by pandas, geopandas, h5py and json, they are what the store holds."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import shapely

import tilestream
from tests.support.heads import CLASSES, head_file
from tests.support.images import make_image, write_pyramid
from tests.support.qupath import read_qupath
from tests.support.runs import given, opened
from tilestream.errors import InputError
from tilestream.interop.exports import export_slides

HEADS = ("kinds", "whole", "failing")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run with a head of tiles, one of the slide that keeps attention, and one that gives nothing for some tiles."""
    folder = tmp_path_factory.mktemp("answers")
    image = write_pyramid(folder / "a.tif", make_image(500, 420, 1), compression="deflate", levels=1, mpp=0.5)
    tiles, _ = head_file(folder / "tiles.safetensors")
    whole, _ = head_file(folder / "slide.safetensors", kind="slide", model="abmil", arguments={"hidden": 4, "gate": 2})
    models = (tiles, whole, "tests.support.heads:odd_is_nan")
    heads = {name: {"kind": "slide" if name == "whole" else "classify", "model": model} for name, model in zip(HEADS, models, strict=True)}
    assert tilestream.run(given(image, folder / "out", heads=heads, tiles={"stride": 48})).exit_code in (0, 4)
    return folder / "out"


def exported(output, tmp_path, head, name):
    assert list(export_slides(str(output), name, what=head, out=str(tmp_path) + "/"))
    (path,) = tmp_path.iterdir()
    return path


def stored(output):
    return anndata.read_zarr(output / "a.zarr" / "tables" / "tiles")


@pytest.mark.parametrize("head", ["kinds", "failing"])
@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_tables_hold_class_and_probabilities_of_each_tile(output, tmp_path, head, name):
    path, table = exported(output, tmp_path, head, name), stored(output)
    found = pd.read_csv(path) if name == "csv" else pd.read_parquet(path)
    assert (found["class"] == list(table.obs[head])).all()
    assert (found[["row", "col", "y", "x"]].to_numpy() == table.obs[["row", "col", "y", "x"]].to_numpy()).all()
    probabilities = found[[column for column in found if column.startswith("prob_")]].to_numpy(np.float32)
    np.testing.assert_array_equal(probabilities, table.obsm[head])
    assert np.isnan(probabilities).any() == (head == "failing")
    if name == "parquet":
        squares = shapely.from_wkb(found["geometry"])
        assert (shapely.bounds(squares)[:, :2] == table.obs[["x", "y"]].to_numpy()).all()
        assert np.allclose(shapely.area(squares), 64**2)


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_tables_of_a_slide_without_tiles_have_the_same_columns(output, tmp_path, name):
    image = write_pyramid(tmp_path / "white.tif", np.full((200, 200, 3), 255, np.uint8), compression="deflate", levels=1, mpp=0.5)
    tiles, _ = head_file(tmp_path / "tiles.safetensors")
    otsu = {"stride": 48, "tissue": "otsu"}
    tilestream.run(given(image, tmp_path / "none", heads={"kinds": {"kind": "classify", "model": tiles}}, tiles=otsu))
    found = []
    for folder, slides in (("whole", output), ("empty", tmp_path / "none")):
        (tmp_path / folder).mkdir()
        path = exported(slides, tmp_path / folder, "kinds", name)
        found.append(pd.read_csv(path) if name == "csv" else pd.read_parquet(path))
    assert list(found[0]) == list(found[1])
    assert (len(found[0]) > 0, len(found[1])) == (True, 0)


def test_geojson_holds_valid_squares_with_measurements(output, tmp_path):
    found, table = read_qupath(exported(output, tmp_path, "failing", "geojson")), stored(output)
    assert len(found) == table.n_obs
    for feature, kind, values in zip(found, table.obs["failing"], table.obsm["failing"], strict=True):
        about = feature["properties"]
        assert shapely.geometry.shape(feature["geometry"]).is_valid
        assert about["objectType"] == "tile"
        if kind == "not computed":
            assert "classification" not in about
            assert about["measurements"] == {}
        else:
            assert about["classification"]["name"] == kind
            assert np.allclose(list(about["measurements"].values()), values, atol=1e-6)


def test_hdf5_holds_predictions_beside_places(output, tmp_path):
    path, table = exported(output, tmp_path, "kinds", "trident-h5"), stored(output)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["predictions"][:], table.obsm["kinds"])
        np.testing.assert_array_equal(file["coords"][:], table.obs[["x", "y"]].to_numpy())
        assert json.loads(file["predictions"].attrs["classes"]) == list(CLASSES)


def test_a_slides_answer_is_one_row_and_its_attention_one_a_tile(output, tmp_path):
    slide, table = opened(output, "a"), stored(output)
    for name, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        (tmp_path / name).mkdir()
        found = read(exported(output, tmp_path / name, "whole", name))
        values = found[[f"prob_{each}" for each in CLASSES]].to_numpy(np.float32)
        np.testing.assert_array_equal(values, slide.read_head("whole"))
        assert found["class"].tolist() == [CLASSES[int(values.argmax())]]
    for name in ("trident-h5", "geojson"):
        (tmp_path / name).mkdir()
    with h5py.File(exported(output, tmp_path / "trident-h5", "whole", "trident-h5")) as file:
        np.testing.assert_array_equal(file["predictions"][:], slide.read_head("whole")[0])
        np.testing.assert_array_equal(file["attention"][:], table.obsm["whole_attention"])
    features = json.loads(exported(output, tmp_path / "geojson", "whole", "geojson").read_text())["features"]
    told = [feature["properties"]["measurements"]["attention"] for feature in features]
    assert np.allclose(told, table.obsm["whole_attention"][:, 0], atol=1e-6)


def test_overlapping_tiles_average_into_the_map(output):
    slide, table = opened(output, "a"), stored(output)
    for head in ("kinds", "failing"):
        found = slide.read_head_map(head)
        sums = np.zeros((table.obsm[head].shape[1] + 1, 600, 600))
        for values, y, x in zip(table.obsm[head], table.obs["y"], table.obs["x"], strict=True):
            if np.isfinite(values).all():
                sums[:, y : y + 64, x : x + 64] += np.array([*values, 1.0])[:, None, None]
        rows, cols = found.shape[1:]
        cells = sums[:, : rows * 48, : cols * 48].reshape(-1, rows, 48, cols, 48).sum(axis=(2, 4))
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found, cells[:-1] / cells[-1], atol=1e-6)
    with pytest.raises(InputError, match="head whole gives no answers for tiles"):
        slide.read_head_map("whole")
