"""Exports of context, slide vectors and attention: the numbers that the store holds, of the tiles that they are of."""

import csv
import re
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
import zarr

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.stores import make_store
from tilestream.cli import main
from tilestream.errors import ConfigError, InputError
from tilestream.interop.exports import FORMATS, export_slides

CORNERS = "tests.support.encoders:corners"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output of one slide with context, vector and attention, whose file is gone."""
    folder = tmp_path_factory.mktemp("vectors")
    slide = write_pyramid(folder / "a.tif", make_image(900, 1100), mpp=0.5)
    embed(
        slide,
        folder / "out",
        context={"window": 2, "depth": 2, "heads": 2},
        pool={"name": "gated_attention"},
        tiles={"tissue": "otsu"},
        encoder=CORNERS,
    )
    slide.unlink()
    return folder / "out"


def export(output, folder, name, what):
    path = folder / f"a{FORMATS[name].suffix}"
    list(export_slides(str(output), name, what=what, slide="a", out=str(path)))
    return path


def test_context_stands_in_place_of_the_embeddings(tmp_path, output):
    context = np.asarray(tilestream.open(output / "a.zarr").context[:], np.float32)
    with h5py.File(export(output, tmp_path, "trident-h5", "context")) as file:
        assert np.array_equal(file["features"][:], context)
        assert len(file["coords"]) == len(context) > 5
    assert np.array_equal(torch.load(export(output, tmp_path, "pt", "context"), weights_only=True).numpy(), context)
    table = pq.read_table(export(output, tmp_path, "parquet", "context"))
    assert np.array_equal(np.stack([table[f"f{k}"] for k in range(context.shape[1])], axis=1), context)


def test_components_are_those_of_the_context(tmp_path, output):
    plain, mixed = (zarr.open_group(export(output, tmp_path / what, "ome-zarr", what), mode="r")["0"][:3] for what in ("tiles", "context"))
    assert np.array_equal(np.isfinite(plain), np.isfinite(mixed))
    assert not np.allclose(plain, mixed, equal_nan=True)


def test_a_slides_vector_is_one_row(tmp_path, output):
    vector = np.asarray(tilestream.open(output / "a.zarr").slide_vector, np.float32)
    with h5py.File(export(output, tmp_path, "trident-h5", "slide")) as file:
        assert list(file) == ["features"]
        assert file["features"].dtype == np.float32
        assert np.array_equal(file["features"][:], vector)
        assert {"name", "savetodir", "encoder"} == set(file["features"].attrs)
    assert np.array_equal(torch.load(export(output, tmp_path, "pt", "slide"), weights_only=True).numpy(), vector)
    with export(output, tmp_path, "csv", "slide").open(newline="") as file:
        (line,) = csv.DictReader(file)
    table = pq.read_table(export(output, tmp_path, "parquet", "slide"))
    assert table.num_rows == 1
    assert line.pop("slide") == table["slide"][0].as_py() == "a"
    assert np.array_equal(np.array(list(line.values()), np.float32), vector)
    assert np.array_equal([table[name][0].as_py() for name in line], vector)


def test_attention_is_a_channel_of_the_image(tmp_path, output):
    root = zarr.open_group(export(output, tmp_path, "ome-zarr", "tiles"), mode="r")
    obs = tilestream.open(output / "a.zarr").obs
    attention = zarr.open_array(output / "a.zarr" / "tables" / "tiles" / "obsm" / "attention", mode="r")[:]
    assert [channel["label"] for channel in root.attrs["ome"]["omero"]["channels"]] == ["PC1", "PC2", "PC3", "attention 1"]
    assert np.array_equal(root["0"][3][obs["row"], obs["col"]], attention[:, 0])


def test_kinds_of_vectors_go_into_folders_of_their_own(output):
    for what in ("tiles", "context", "slide"):
        with pytest.raises(SystemExit) as left:
            main(["export", str(output), "--to", "pt", "--what", what])
        assert left.value.code == 0
    assert {path.name for path in Path(output / "exports").iterdir()} == {"pt", "pt-context", "pt-slide"}


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("pt", "windows", "--what windows: answers of a head are for"),
        ("geojson", "slide", "--what slide: is for --to trident-h5, pt, parquet, csv, not geojson."),
        ("spatialdata", "context", "--what context: spatialdata holds it anyhow"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, what, words):
    make_store(tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match=re.escape(words)):
        list(export_slides(str(tmp_path), name, what=what))


@pytest.mark.parametrize(
    ("what", "words"),
    [("context", "holds no context of tiles.*Run with a context"), ("slide", "holds no vector of the slide.*Run with a pool")],
)
def test_what_a_store_does_not_hold_is_refused_before_anything_is_written(tmp_path, what, words):
    make_store(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=words):
        list(export_slides(str(tmp_path), "pt", what=what))
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_slide_whose_tiles_all_failed_is_exported(tmp_path, name):
    make_store(tmp_path / "a.zarr", failed=range(20))
    (line,) = export_slides(str(tmp_path), name)
    kept = 20 if name in ("parquet", "csv", "geojson", "spatialdata") else 0
    assert line.startswith(f"a: {kept} tiles")
    assert ("20 failed tiles left out" in line) == (kept == 0)


def test_a_slide_whose_file_is_gone_has_no_bounds_to_count_from(tmp_path, output):
    with pytest.raises(InputError, match=r"a: --in-bounds needs the bounds .*Or leave it out"):
        list(export_slides(str(output), "geojson", in_bounds=True, out=str(tmp_path / "all")))
    assert list(export_slides(str(output), "geojson", out=str(tmp_path / "all")))


def test_every_export_of_failed_tiles_and_of_no_tiles(tmp_path):
    white = write_pyramid(tmp_path / "white.tif", np.full((600, 700, 3), 255, np.uint8), levels=2, compression=None)
    hurt = write_pyramid(tmp_path / "hurt.tif", make_image(600, 700, 1), levels=1)
    with tifffile.TiffFile(hurt) as opened:
        place, length = opened.pages[0].dataoffsets[0], opened.pages[0].databytecounts[0]
    raw = bytearray(hurt.read_bytes())
    raw[place : place + length] = bytes(length)
    hurt.write_bytes(raw)
    out = tmp_path / "out"
    tiles = {"size": 64, "level": 0, "tissue": "otsu"}
    embed([white, hurt], out, tiles=tiles, encoder=CORNERS, context={"window": 4, "depth": 2, "heads": 1}, pool="gated_attention")
    store = tilestream.open(out / "hurt.zarr")
    good = np.isfinite(np.asarray(store.context[:])).all(axis=1)
    assert 0 < good.sum() < len(good)
    for name in FORMATS:
        for what in ("tiles", "context") if name != "spatialdata" else ("tiles",):
            list(export_slides(str(out), name, what=what, out=str(tmp_path / name / what)))
    for suffix in ("pt", "trident-h5", "parquet"):
        assert {path.stem for path in (tmp_path / suffix / "context").iterdir()} == {"white", "hurt"}
    with h5py.File(tmp_path / "trident-h5" / "context" / "hurt.h5") as file:
        assert np.array_equal(file["features"][:], np.asarray(store.context[:], np.float32)[good])
        assert np.array_equal(file["coords"][:], store.positions[good][:, ::-1])
    assert torch.load(tmp_path / "pt" / "context" / "white.pt", weights_only=True).shape == (0, store.context.shape[1])
    table = pq.read_table(tmp_path / "parquet" / "context" / "hurt.parquet")
    assert table.num_rows == len(good)
    assert np.array_equal(np.isfinite(np.asarray(table["f0"].to_pandas(), np.float32)), good)
    attention = zarr.open_group(tmp_path / "ome-zarr" / "tiles" / "hurt.ome.zarr", mode="r")["0"][3]
    assert np.isfinite(attention).sum() == good.sum()
