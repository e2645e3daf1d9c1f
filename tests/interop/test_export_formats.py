"""What each format holds, read back by a library that is not ours."""

import csv
import json
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

import tilestream
from tests.support.exported import export, good_rows, read_features
from tests.support.stores import make_store
from tilestream.errors import ConfigError, InputError
from tilestream.interop.geojson import outlines
from tilestream.interop.multiscale import halve_means

# -- HDF5 and tensors -------------------------------------------------------------------------------------------------


def test_trident_files_have_its_names_types_and_attributes(tmp_path):
    make_store(tmp_path / "a.zarr", scale=2.0, mpp=0.25, stride=200, failed=[3, 7])
    path, words = export(tmp_path, "trident-h5")
    assert "18 tiles" in words
    assert "2 failed tiles left out" in words
    xy, values = good_rows(tmp_path)
    with h5py.File(path) as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        assert np.array_equal(file["features"][:], values)
        assert np.array_equal(file["coords"][:], xy)
        assert dict(file["coords"].attrs) == {
            "patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20, "overlap": 24,
            "name": "a", "savetodir": str(tmp_path / "exports" / "trident-h5"), "level0_width": 2048, "level0_height": 1648,
        }  # fmt: skip
        assert dict(file["features"].attrs) == {"name": "a", "savetodir": str(tmp_path / "exports" / "trident-h5"), "encoder": "made_up"}


@pytest.mark.parametrize(
    ("source", "attributes"),
    [
        ({"level": 1, "downsample": 4.0, "scale": 4.0}, {"patch_size": 224, "patch_level": 1}),
        ({"level": 0, "downsample": 1.0, "scale": 2.0}, {"patch_size": 448, "patch_level": 0, "custom_downsample": 2}),
        ({"level": 0, "downsample": 1.0, "scale": 1.5}, {"patch_size": 336, "patch_level": 0, "custom_downsample": 1.5}),
    ],
)
def test_clam_files_say_level_and_size_in_its_pixels(tmp_path, source, attributes):
    make_store(tmp_path / "a.zarr", mpp=None, **source)
    path, _ = export(tmp_path, "clam-h5")
    with h5py.File(path) as file:
        assert dict(file["coords"].attrs) == attributes
        assert file["features"].shape == (20, 6)
        assert file["coords"].dtype == np.int64


def test_tensors_load_with_weights_only(tmp_path):
    make_store(tmp_path / "a.zarr", failed=[0], dtype="float16")
    path, _ = export(tmp_path, "pt")
    tensor = torch.load(path, weights_only=True)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), good_rows(tmp_path)[1])
    assert [p.name for p in (tmp_path / "exports" / "pt").iterdir()] == ["a.pt"]


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_csv_gives_every_number_back(tmp_path, dtype):
    make_store(tmp_path / "a.zarr", failed=[2], dtype=dtype)
    path, _ = export(tmp_path, "csv")
    with Path(path).open(newline="") as file:
        lines = list(csv.DictReader(file))
    store = tilestream.open(tmp_path / "a.zarr")
    assert list(lines[0]) == ["row", "col", "y", "x", "tissue", "status", *(f"f{k}" for k in range(6))]
    assert [line["status"] for line in lines] == store.obs["status"].tolist()
    assert [[int(line["y"]), int(line["x"])] for line in lines] == store.positions.tolist()
    found = np.array([[float(line[f"f{k}"] or "nan") for k in range(6)] for line in lines])
    assert np.array_equal(found.astype(dtype), store.embeddings[:], equal_nan=True)


def test_parquet_has_a_row_a_tile(tmp_path):
    make_store(tmp_path / "a.zarr", failed=[2])
    path, _ = export(tmp_path, "parquet")
    table = pq.read_table(path)
    store = tilestream.open(tmp_path / "a.zarr")
    assert table.column_names == ["row", "col", "y", "x", "tissue", "status", *(f"f{k}" for k in range(6))]
    assert table["f3"].to_pylist()[2] is None
    assert np.array_equal(table["f5"].to_numpy(), store.embeddings[:, 5], equal_nan=True)
    assert table["x"].to_pylist() == store.obs["x"].tolist()
    assert json.loads(table.schema.metadata[b"tilestream"])["slide"] == "a"


def test_parquet_names_the_package_that_it_lacks(tmp_path, monkeypatch):
    make_store(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow, which is not installed: pip install"):
        export(tmp_path, "parquet")
    assert not (tmp_path / "exports").exists()


# -- GeoJSON ----------------------------------------------------------------------------------------------------------


def test_tiles_are_closed_squares_in_level_0_pixels(tmp_path):
    make_store(tmp_path / "a.zarr", scale=1.7, failed=[4])
    path, _ = export(tmp_path, "geojson")
    _, tiles = read_features(path)
    store = tilestream.open(tmp_path / "a.zarr")
    side = 224 * 1.7
    for k, (feature, (y, x)) in enumerate(zip(tiles, store.positions.tolist(), strict=True)):
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert np.allclose(ring, [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]])
        measured = feature["properties"]["measurements"]
        assert (measured["row"], measured["col"]) == (store.obs["row"].iloc[k], store.obs["col"].iloc[k])
        assert measured["tissue"] == pytest.approx(store.obs["tissue"].iloc[k])
        assert ("PC1" in measured) == (k != 4)
    assert tiles[4]["properties"]["classification"]["name"] == "decode_error"
    scores = np.array([[t["properties"]["measurements"][f"PC{n}"] for n in (1, 2, 3)] for k, t in enumerate(tiles) if k != 4])
    assert np.allclose(scores.mean(axis=0), 0, atol=1e-6)
    centred = good_rows(tmp_path)[1] - good_rows(tmp_path)[1].mean(axis=0)
    assert np.allclose(scores.std(axis=0), np.linalg.svd(centred, compute_uv=False)[:3] / np.sqrt(19), rtol=1e-5)


def test_tissue_is_an_annotation_with_its_hole_at_the_masks_place(tmp_path):
    make_store(tmp_path / "a.zarr", thumbnail_downsample=32.0)  # 896 x 1120 px: a mask of 28 x 35
    path, _ = export(tmp_path, "geojson")
    annotations, _ = read_features(path)
    outline, hole = (np.array(ring) for ring in annotations[0]["geometry"]["coordinates"])
    assert len(annotations) == 1
    assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([3 * 32, 2 * 32], [32 * 32, 26 * 32])
    assert (hole.min(axis=0).tolist(), hole.max(axis=0).tolist()) == ([6 * 32, 6 * 32], [8 * 32, 8 * 32])


def test_outlines_tell_pieces_apart_that_touch_at_a_corner():
    mask = np.zeros((6, 6), bool)
    mask[:3, :3] = mask[3:, 3:] = True
    assert [len(rings) for rings in outlines(mask)] == [1, 1]


def test_in_bounds_counts_from_the_corner_of_openslides_bounds(tmp_path):
    bounds = {"openslide.bounds-x": "100", "openslide.bounds-y": "30", "openslide.bounds-width": "500"}
    make_store(tmp_path / "a.zarr", bounds=bounds)
    plain, shifted = (
        read_features(export(tmp_path, "geojson", in_bounds=flag, out=str(tmp_path / f"{flag}.geojson"), slide="a")[0])
        for flag in (False, True)
    )
    for before, after in zip(plain[0] + plain[1], shifted[0] + shifted[1], strict=True):
        for ring, moved in zip(before["geometry"]["coordinates"], after["geometry"]["coordinates"], strict=True):
            assert np.allclose(np.array(ring) - [100, 30], moved)


def test_bounds_are_asked_of_the_file_where_the_store_has_none(tmp_path, slides):
    make_store(tmp_path / "a.zarr", address=str(slides / "CMU-1-Small-Region.svs"))
    _, tiles = read_features(export(tmp_path, "geojson", in_bounds=True)[0])
    assert tiles[0]["geometry"]["coordinates"][0][0] == [0, 0]  # a slide without bounds
    make_store(tmp_path / "a.zarr", address="gone.svs")
    with pytest.raises(InputError, match=r"a: --in-bounds needs the bounds .*gone\.svs"):
        export(tmp_path, "geojson", in_bounds=True)


# -- OME-Zarr and SpatialData -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "mpp"), [(224, 0.25), (160, 0.5), (224, None)])
def test_ome_zarr_pixels_lie_on_the_centres_of_their_tiles(tmp_path, stride, mpp):
    random = np.random.default_rng(1)
    keep = random.random((150, 90)) < 0.4
    make_store(tmp_path / "a.zarr", 150, 90, 4, keep=keep, scale=1.3, stride=stride, mpp=mpp)
    path, _ = export(tmp_path, "ome-zarr")
    root = zarr.open_group(path, mode="r")
    ome = root.attrs["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    unit = {} if mpp is None else {"unit": "micrometer"}
    assert image["axes"] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", **unit},
        {"name": "x", "type": "space", **unit},
    ]
    (scale,), (shift,) = (
        [t[kind] for t in image["datasets"][0]["coordinateTransformations"] if t["type"] == kind] for kind in ("scale", "translation")
    )
    table = anndata.read_zarr(tmp_path / "a.zarr" / "tables" / "tiles")
    pixels = root["0"][:]
    assert pixels.shape[0] == 3
    assert np.array_equal(np.isfinite(pixels).all(axis=0)[:150, :90], keep)
    for axis, column, centre in ((1, "row", table.obsm["spatial"][:, 1]), (2, "col", table.obsm["spatial"][:, 0])):
        places = table.obs[column].to_numpy() * scale[axis] + shift[axis]
        assert np.abs(places - centre * (mpp or 1)).max() <= 0.5 * (mpp or 1)  # tiles begin at whole level-0 pixels
    assert len(image["datasets"]) == 3
    for level, dataset in enumerate(image["datasets"][1:], start=1):
        step, first = (t[t["type"]] for t in dataset["coordinateTransformations"])
        assert step == [1.0, scale[1] * 2**level, scale[2] * 2**level]
        assert first[1] == pytest.approx(shift[1] + (2**level - 1) / 2 * scale[1])  # the middle of the pixels it is made of
        assert root[dataset["path"]].shape[1] == -(-pixels.shape[1] // 2**level)


def test_ome_zarr_labels_have_the_levels_of_the_image(tmp_path):
    keep = np.zeros((150, 90), bool)
    keep[40, 17] = keep[100:120, 30:60] = True
    make_store(tmp_path / "a.zarr", 150, 90, 4, keep=keep)
    path, _ = export(tmp_path, "ome-zarr")
    root = zarr.open_group(path, mode="r")
    assert root["labels"].attrs["ome"] == {"version": "0.5", "labels": ["tissue"]}
    tissue = root["labels/tissue"]
    about = tissue.attrs["ome"]
    assert about["image-label"]["source"] == {"image": "../../"}
    assert [d["path"] for d in about["multiscales"][0]["datasets"]] == [d["path"] for d in root.attrs["ome"]["multiscales"][0]["datasets"]]
    for level in ("0", "1", "2"):
        assert tissue[level].shape == root[level].shape[1:]
        assert np.issubdtype(tissue[level].dtype, np.integer)
    assert np.array_equal(tissue["0"][:150, :90], keep)
    assert tissue["2"][10, 4] == 1  # the single tile at (40, 17)


def test_means_leave_out_what_is_missing():
    band = np.array([[[1, np.nan, np.nan, np.nan], [3, np.nan, np.nan, np.nan]]], np.float32)
    assert np.array_equal(halve_means(band), [[[2, np.nan]]], equal_nan=True)


def test_bands_of_a_tall_grid_come_together(tmp_path):
    keep = np.zeros((1100, 3), bool)
    keep[[0, 255, 256, 511, 1023, 1024, 1099], 1] = True
    make_store(tmp_path / "a.zarr", 1100, 3, 4, keep=keep)
    path, _ = export(tmp_path, "ome-zarr")
    assert np.array_equal(np.isfinite(zarr.open_group(path, mode="r")["0"][:][0]), keep)


def test_spatialdata_ties_rows_to_squares_and_labels(tmp_path):
    keep = np.ones((4, 5), bool)
    keep[1, 2] = False
    make_store(tmp_path / "a.zarr", keep=keep, failed=[3], thumbnail_downsample=32.0)
    path, _ = export(tmp_path, "spatialdata")
    root = zarr.open_group(path, mode="r")
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    attributes = root["tables/tiles"].attrs
    keys = {"region": "tile_squares", "region_key": "region", "instance_key": "tile_id"}
    assert {name: attributes[name] for name in keys} == keys
    assert attributes["spatialdata-encoding-type"] == "ngff:regions_table"
    assert attributes["version"] == "0.2"
    table = anndata.read_zarr(f"{path}/tables/tiles")
    assert table.uns["spatialdata_attrs"] == keys
    assert (table.obs["region"] == "tile_squares").all()
    assert np.array_equal(table.X, tilestream.open(tmp_path / "a.zarr").embeddings[:], equal_nan=True)
    labels = root["labels/tile_grid/0"][:]
    assert np.array_equal(labels[table.obs["row"], table.obs["col"]], table.obs["tile_id"])
    assert labels[1, 2] == 0
    squares = pq.read_table(f"{path}/shapes/tile_squares/shapes.parquet")
    assert squares["tile_id"].to_pylist() == table.obs["tile_id"].tolist()
    corners = np.array([np.frombuffer(raw[13:], "<f8").reshape(5, 2) for raw in squares["geometry"].to_pylist()])
    assert np.array_equal(corners[:, 0], table.obs[["x", "y"]])
    assert np.array_equal(corners[:, 2], table.obs[["x", "y"]] + 224)
    assert root["labels/tissue/0"][:].sum() == 24 * 29 - 4  # the mask's rectangle without its hole
    assert root["images/thumbnail/0"].shape == (3, 28, 35)
    assert not anndata.read_zarr(tmp_path / "a.zarr" / "tables" / "tiles").uns.get("spatialdata_attrs")  # the store itself is as it was
