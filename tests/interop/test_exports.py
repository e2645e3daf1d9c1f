"""Exports: names, types and attributes that other programs expect, and places that agree with the tiles'."""

import csv
import json
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, IncompleteError, InputError, OutputError
from tilestream.interop.exports import FORMATS, export_slides
from tilestream.interop.geojson import outlines
from tilestream.interop.importing import import_features
from tilestream.interop.multiscale import halve_means
from tilestream.store.folder import Folder
from tilestream.store.ownership import claim
from tilestream.store.slide import Slide
from tilestream.store.verify import verify_output
from tilestream.tiles.coords_file import grid_step


def export(output, name, **options):
    """Export one slide, and return its path and the words."""
    lines = list(export_slides(str(output), name, **options))
    assert len(lines) == 1
    return lines[0].split(" -> ")[1].split("; ")[0], lines[0]


def good_rows(output, slide="a"):
    """x, y and embeddings (float32) of the tiles that did not fail."""
    store = tilestream.open(f"{output}/{slide}.zarr")
    values = np.asarray(store.embeddings[:], np.float32)
    good = np.isfinite(values).all(axis=1)
    return store.positions[good][:, ::-1], values[good]


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


def read_features(path):
    found = json.loads(Path(path).read_text())
    assert found["type"] == "FeatureCollection"
    kinds = {"annotation": [], "tile": []}
    for feature in found["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in feature["geometry"]["coordinates"])
        kinds[feature["properties"]["objectType"]].append(feature)
    return kinds["annotation"], kinds["tile"]


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


# -- what holds for all -----------------------------------------------------------------------------------------------

BINARY = ("trident-h5", "clam-h5", "pt", "ome-zarr", "spatialdata")


@pytest.fixture
def small_blocks(monkeypatch):
    for module in ("blocks", "slide"):
        monkeypatch.setattr(f"tilestream.store.{module}.BLOCK_ROWS", 512)  # a slide of 20,000 tiles is then 40 blocks


@pytest.mark.parametrize("name", BINARY)
def test_an_export_never_holds_a_slides_embeddings(tmp_path, name, small_blocks):
    make_store(tmp_path / "small.zarr", 10, 10, 256)
    make_store(tmp_path / "a.zarr", 100, 200, 256, thumbnail=224)
    export(tmp_path, name, slide="small")  # what is imported and cached once
    tracemalloc.start()
    try:
        export(tmp_path, name, slide="a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 256 * 4 / 2


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - set(BINARY)))
def test_an_export_as_text_or_columns_asks_for_one_block_at_a_time(tmp_path, name, small_blocks, monkeypatch):
    make_store(tmp_path / "a.zarr", 100, 200, 32, thumbnail=224)
    asked = []

    def counted(self, selection):
        values = read(self, selection)
        asked.extend([len(values)] if values.ndim == 2 else [])
        return values

    read = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    export(tmp_path, name)
    assert max(asked) == 512
    assert sum(asked) % 20_000 == 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_slide_without_tissue_is_exported(tmp_path, name):
    make_store(tmp_path / "a.zarr", keep=np.zeros((4, 5), bool))
    assert "a: 0 tiles" in export(tmp_path, name)[1]


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_cut_short_leaves_nothing(tmp_path, name, monkeypatch):
    make_store(tmp_path / "a.zarr", 60, 60, 4)

    def broken(self):
        yield from list(whole(self))[:1]
        raise OSError("the disk is gone")

    whole = Slide.blocks
    monkeypatch.setattr(Slide, "blocks", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        export(tmp_path, name)
    assert list((tmp_path / "exports" / name).iterdir()) == []


def test_unfinished_slides_are_left_out_and_named_and_the_others_exported(tmp_path, capsys):
    for name in "abc":
        make_store(tmp_path / f"{name}.zarr", finish=name != "b")
    claim(Folder(str(tmp_path / "d.zarr")))  # its creation was cut short
    with pytest.raises(SystemExit, match="4"):
        main(["export", str(tmp_path), "--to", "csv"])
    out, err = capsys.readouterr()
    assert [line[:2] for line in out.splitlines()] == ["a:", "c:"]
    assert re.search(r"2 of 4 slides left out: .*b.zarr is not finished.*--allow-unfinished.*\n.*d.zarr: its creation was cut short", err)
    with pytest.raises(IncompleteError, match=r"b.zarr is not finished"):
        list(export_slides(str(tmp_path), "csv", slide="b"))
    shutil.rmtree(tmp_path / "d.zarr")
    shutil.rmtree(tmp_path / "exports")
    assert len(list(export_slides(str(tmp_path), "csv", allow_unfinished=True))) == 3


def test_an_output_stays_an_output_with_exports_in_it(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr")
    for name in ("ome-zarr", "spatialdata"):
        assert len(list(export_slides(str(tmp_path), name))) == 2
    assert verify_output(str(tmp_path), lambda _: None) == 0


def test_out_is_a_file_for_one_slide_and_a_folder_for_all(tmp_path):
    make_store(tmp_path / "a.zarr")
    make_store(tmp_path / "b.zarr")
    list(export_slides(str(tmp_path), "csv", out=str(tmp_path / "all")))
    list(export_slides(str(tmp_path), "csv", slide="a", out=str(tmp_path / "one.csv")))
    list(export_slides(str(tmp_path / "b.zarr"), "csv", out=str(tmp_path / "two.csv")))
    list(export_slides(str(tmp_path / "b.zarr"), "csv"))
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a.csv", "b.csv"]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "all" / "a.csv").read_bytes()
    assert (tmp_path / "two.csv").is_file()
    assert (tmp_path / "exports" / "csv" / "b.csv").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "hdf5"}, "--to: 'hdf5' is none of trident-h5"),
        ({"name": "csv", "slide": "c"}, "--slide: 'c' is not in .*, which holds a"),
        ({"name": "pt", "in_bounds": True}, "--in-bounds: is for --to geojson only"),
        ({"name": "ome-zarr", "out": "THERE"}, "is there already. Delete it"),
    ],
)
def test_refusals_say_what_and_the_way_out(tmp_path, options, words):
    make_store(tmp_path / "a.zarr")
    (tmp_path / "x.zarr").mkdir()
    if "out" in options:
        options = {**options, "out": str(tmp_path / "x.zarr"), "slide": "a"}
    with pytest.raises(ConfigError, match=words):
        list(export_slides(str(tmp_path), **options))


def test_a_slide_without_resolution_has_no_trident_file(tmp_path):
    make_store(tmp_path / "a.zarr", mpp=None)
    with pytest.raises(InputError, match=r"a: the slide has no resolution.*Use --to clam-h5"):
        export(tmp_path, "trident-h5")


# -- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mpp", "stride"), [(0.5, 224), (0.37, 200), (1.1, 224)])
def test_features_go_out_and_come_back(tmp_path, mpp, stride, capsys):
    image = make_image(2000, 2600, seed=1)
    write_pyramid(tmp_path / "a.tif", image, compression="jpeg", levels=1, mpp=0.25)
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"size": 224, "level": None, "mpp": mpp, "stride": stride, "tissue": "none"})
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path / "out"), "--to", "trident-h5", "--slide", "a", "--out", str(tmp_path / "a.h5")])
    assert left.value.code == 0
    with pytest.raises(SystemExit) as left:
        main(["import", str(tmp_path / "a.h5"), "--slide", str(tmp_path / "a.tif"), "--out", str(tmp_path / "back")])
    assert left.value.code == 0
    assert "on a regular grid" in capsys.readouterr().out
    before, after = (tilestream.open(tmp_path / name / "a.zarr") for name in ("out", "back"))
    assert np.array_equal(before.embeddings[:], after.embeddings[:])
    assert before.obs.drop(columns="tissue").equals(after.obs.drop(columns="tissue"))
    assert np.array_equal(before.positions, after.positions)
    assert after.recipe["imported"]["grid"] == "regular"
    assert after.source["mpp"] == before.source["mpp"]
    assert after.source["scale"] == pytest.approx(before.source["scale"], rel=1e-3)
    assert verify_output(str(tmp_path / "back"), lambda _: None) == 0


def test_clam_files_of_a_coarse_level_need_the_image(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(2000, 2600, seed=1), compression="jpeg", levels=2, mpp=0.25)
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"size": 128, "level": 1, "tissue": "none"})
    path, _ = export(tmp_path / "out", "clam-h5")
    import_features(path, str(tmp_path / "a.tif"), str(tmp_path / "back"))
    before, after = (tilestream.open(tmp_path / name / "a.zarr") for name in ("out", "back"))
    assert np.array_equal(before.embeddings[:], after.embeddings[:])
    assert before.obs.drop(columns="tissue").equals(after.obs.drop(columns="tissue"))
    assert {name: after.source[name] for name in ("level", "downsample", "scale")} == {"level": 1, "downsample": 2.0, "scale": 2.0}
    assert after.to_anndata().uns["mpp"] == 0.25
    with h5py.File(path, "a") as file:  # as CLAM writes it, without what we add
        del file.attrs["l0_extent"]
    with pytest.raises(InputError, match="does not say how large a tile is"):
        import_features(path, "a", str(tmp_path / "named"))


def test_a_file_without_tiles_becomes_a_store_without_tiles(tmp_path):
    make_store(tmp_path / "a.zarr", keep=np.zeros((4, 5), bool))
    path, _ = export(tmp_path, "trident-h5")
    assert "a: 0 tiles x 6" in import_features(path, "a", str(tmp_path / "out"))
    assert tilestream.open(tmp_path / "out" / "a.zarr").embeddings.shape == (0, 6)


def write_features(path, xy, dim=4, **attributes):
    values = np.random.default_rng(2).standard_normal((len(xy), dim)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = values, np.asarray(xy, np.int64)
        file["coords"].attrs.update(attributes)
    return values


def test_places_off_the_grid_become_ranks(tmp_path):
    xy = [(517, 103), (37, 103), (517, 359), (1111, 700)]
    values = write_features(tmp_path / "f.h5", xy, patch_size=256, patch_level=0)
    words = import_features(str(tmp_path / "f.h5"), "slide 7", str(tmp_path / "out"))
    assert "on no regular grid" in words
    assert "taken as a name" in words
    store = tilestream.open(tmp_path / "out" / "slide 7.zarr")
    assert store.obs[["row", "col"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert store.positions.tolist() == [[103, 37], [103, 517], [359, 517], [700, 1111]]
    assert np.array_equal(store.embeddings[:], values[[1, 0, 2, 3]])
    assert store.source["mpp"] is None
    with pytest.raises(InputError, match=r"lie on no regular grid\. Export them as spatialdata, geojson"):
        export(tmp_path / "out", "ome-zarr")
    annotations, tiles = read_features(export(tmp_path / "out", "geojson")[0])
    assert annotations == []
    assert len(tiles) == 4
    assert "tissue" not in tiles[0]["properties"]["measurements"]


def test_rows_in_any_order_and_rows_that_are_not_finite(tmp_path):
    order = np.random.default_rng(3).permutation(70 * 60)
    xy = np.stack([order % 60 * 512, order // 60 * 512], axis=1)
    write_features(
        tmp_path / "f.h5", xy, patch_size=256, patch_size_level0=512, overlap=0, level0_width=60 * 512 - 1, level0_height=70 * 512 - 100
    )
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["features"][7, 2] = np.inf
        values = file["features"][:]
    assert "1 of them not finite" in import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"))
    store = tilestream.open(tmp_path / "out" / "a.zarr")
    back = np.argsort(order)
    values[7] = np.nan
    assert np.array_equal(store.embeddings[:], values[back], equal_nan=True)
    assert store.obs["status"].iloc[order[7]] == "nonfinite"
    assert (store.obs["status"] == "padded").sum() == 60 - (order[7] >= 69 * 60)
    assert "1 failed tile left out" in export(tmp_path / "out", "pt")[1]


@pytest.mark.parametrize(("true", "stated"), [(448.7, 449), (511.5, 512), (224, 224), (333.33, 333)])
def test_a_rounded_step_is_made_exact_from_the_places(true, stated):
    index = np.arange(700)
    y, x = np.rint(index * true).astype(np.int64), np.rint(index[300:] * true).astype(np.int64)
    step = grid_step(y, x, stated)
    assert np.array_equal(np.rint(y / step), index)
    assert grid_step(y + 100, x, stated) is None


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "does not say how large a tile is.*--patch-size-level0"),
        ({"patch_size": 256, "patch_level": 2}, "does not say how large a tile is"),
    ],
)
def test_a_file_that_does_not_say_its_tiles_size_is_refused_with_the_way_out(tmp_path, attributes, words):
    write_features(tmp_path / "f.h5", [(0, 0), (512, 0)], **attributes)
    with pytest.raises(InputError, match=words):
        import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"))
    assert "on a regular grid" in import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"), patch_size_level0=512)
    with pytest.raises(OutputError, match="is there already"):
        import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"), patch_size_level0=512)


@pytest.mark.parametrize(
    ("slide", "words"), [("gone/a.svs", "gone/a.svs"), ("..", "means a folder|is a folder"), ("a\nb", "control characters")]
)
def test_slides_that_are_neither_image_nor_name_are_refused(tmp_path, slide, words):
    write_features(tmp_path / "f.h5", [(0, 0)], patch_size=256)
    with pytest.raises((InputError, ConfigError), match=words):
        import_features(str(tmp_path / "f.h5"), slide, str(tmp_path / "out"))


@pytest.mark.parametrize("content", ["text", "no coords", "shapes"])
def test_files_that_hold_no_features_are_refused(tmp_path, content):
    path = tmp_path / "f.h5"
    if content == "text":
        path.write_text("no HDF5")
    else:
        with h5py.File(path, "w") as file:
            file["features"] = np.zeros((3, 4), np.float32)
            if content == "shapes":
                file["coords"] = np.zeros((2, 2), np.int64)
    with pytest.raises(InputError, match={"text": "not a readable HDF5", "no coords": "no dataset coords", "shapes": "are not"}[content]):
        import_features(str(path), "a", str(tmp_path / "out"))
