"""Exports of context, slide vectors and attention: the numbers that the store holds, of the tiles that they are of."""

import csv
import re
from pathlib import Path

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
from tilestream.errors import ConfigError, InputError
from tilestream.exports import FORMATS, export_slides

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
        ("pt", "windows", "--what: 'windows' is none of tiles, context, slide."),
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
