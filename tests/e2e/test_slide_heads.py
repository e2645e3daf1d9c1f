"""Heads of whole slides in a run: what a bag gives that sees all rows at once, with attention, values and risks."""

import anndata
import numpy as np
import pytest
import torch

import tilestream
from tests.e2e.test_heads import table
from tests.support.heads import head_file
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given
from tilestream.encoders.heads.head_file import HeadAbout, build_model, write_head
from tilestream.errors import InputError
from tilestream.models.heads.bags import BagRows
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)


def answers(output):
    return anndata.read_zarr(output / "a.zarr" / "tables" / "slide").obsm


def bag_rows(found, stride_um=32.0):
    good = np.isfinite(found.X).all(axis=1)
    places = [torch.from_numpy((found.obs[axis].to_numpy()[good] + 0.5) * stride_um) for axis in ("row", "col")]
    return good, BagRows(torch.from_numpy(found.X[good]), *places)


@pytest.mark.parametrize("model", ["pool", "abmil", "transformer"])
def test_a_slides_answer_is_that_of_all_its_rows_at_once_whatever_the_shards(image, tmp_path, model):
    path, module = head_file(tmp_path / "bag.safetensors", kind="slide", model=model, dim=3)
    heads = {"bag": {"kind": "slide", "model": path}}
    for shard in (16, 64):
        settings = given(image, tmp_path / str(shard), heads=heads, encoder="tests.support.encoders:nans", pool="none")
        assert tilestream.run({**settings, "compute": {**settings["compute"], "shard_tiles": shard}}).failed_tiles > 0
    found = table(tmp_path / "16")
    good, rows = bag_rows(found)
    with torch.inference_mode():
        out, logits = module(rows)
    assert np.abs(answers(tmp_path / "16")["bag"][0] - torch.softmax(out, dim=0).numpy()).max() < 1e-5
    shares = torch.softmax(logits.double(), dim=1).mean(dim=0).numpy()
    assert np.abs(found.obsm["bag_attention"][good, 0] - shares).max() < 1e-6
    assert np.isnan(found.obsm["bag_attention"][~good]).all()
    slide = tilestream.open(tmp_path / "16" / "a.zarr")
    assert np.array_equal(slide.read_head("bag"), answers(tmp_path / "16")["bag"])
    assert np.array_equal(slide.read_head_attention("bag"), found.obsm["bag_attention"][:, 0], equal_nan=True)
    with pytest.raises(InputError, match="head bag gives no classes of tiles"):
        slide.read_head_classes("bag")
    assert np.array_equal(answers(tmp_path / "64")["bag"], answers(tmp_path / "16")["bag"])
    assert np.array_equal(table(tmp_path / "64").obsm["bag_attention"], found.obsm["bag_attention"], equal_nan=True)


def test_values_risks_vectors_and_whole_bags(image, tmp_path):
    heads = {
        "age": {"task": "regression", "classes": ("age", "grade"), "model": "abmil"},
        "risk": {"task": "risk", "classes": (), "model": "abmil"},
        "sex": {"classes": ("female", "male"), "model": "linear", "read": "vector"},
    }
    given_heads = {"whole": {"kind": "slide", "model": "tests.support.heads:whole_bag"}}
    modules = {}
    for name, told in heads.items():
        path, modules[name] = _head(tmp_path / f"{name}.safetensors", **told)
        given_heads[name] = {"kind": "slide", "model": path, "input": told.get("read", "tiles")}
    given_heads["risk"]["save"] = []
    assert tilestream.run(given(image, tmp_path / "out", heads=given_heads)).exit_code == 0
    found, slide = table(tmp_path / "out"), anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "slide")
    _, rows = bag_rows(found)
    with torch.inference_mode():
        assert np.abs(slide.obsm["age"][0] - modules["age"](rows)[0].numpy()).max() < 1e-4
        assert np.abs(slide.obsm["risk"][0] - modules["risk"](rows)[0].numpy()).max() < 1e-4
        expected = torch.softmax(modules["sex"](torch.from_numpy(slide.X)), dim=1).numpy()
    assert np.abs(slide.obsm["sex"] - expected).max() < 1e-6
    assert np.abs(slide.obsm["whole"][0] - torch.softmax(rows.x.mean(dim=0)[:2], dim=0).numpy()).max() < 1e-5
    assert {name for name in found.obsm if name.endswith("_attention")} == {"age_attention", "whole_attention"}
    assert np.abs(found.obsm["whole_attention"][:, 0] - torch.softmax(rows.x[:, 0].double() / 255, dim=0).numpy()).max() < 1e-6

    before = bytes_of(tmp_path / "out" / "a.zarr" / "tables")
    tilestream.run(given(image, tmp_path / "out", heads=given_heads), restart="pool")  # what reads the vector is done again with it
    assert bytes_of(tmp_path / "out" / "a.zarr" / "tables") == before
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() == []


def test_a_head_that_asks_is_told_where_the_tiles_lie(image, tmp_path):
    heads = {"placed": {"kind": "slide", "model": "tests.support.heads:placed_bag"}}
    assert tilestream.run(given(image, tmp_path / "out", heads=heads)).exit_code == 0
    found, slide = table(tmp_path / "out"), anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "slide")
    good = np.isfinite(np.asarray(found.X, np.float32)).all(axis=1)
    centre = found.obsm["spatial"][good, ::-1] * 0.5  # y, x in µm
    logits = torch.from_numpy(centre.mean(axis=0))
    assert np.abs(slide.obsm["placed"][0] - torch.softmax(logits, dim=0).numpy()).max() < 1e-4
    shares = torch.softmax(torch.from_numpy(centre[:, 1]) / 1000, dim=0).numpy()
    assert np.abs(found.obsm["placed_attention"][good, 0] - shares).max() < 1e-6


def _head(path, *, classes, model, task="classification", read="tiles"):
    outputs = len(classes) or 1
    told = HeadAbout("slide", model, read, 12, outputs, task=task, classes=classes)
    module = build_model(told)
    write_head(path, module, told)
    return str(path), module


def test_a_slide_without_tiles_has_an_answer_that_is_none(tmp_path):
    blank = write_pyramid(tmp_path / "a.tif", np.full((300, 300, 3), 255, np.uint8), compression="deflate", levels=1, mpp=0.5)
    path, _ = head_file(tmp_path / "bag.safetensors", kind="slide", model="abmil")
    tiles, _ = head_file(tmp_path / "tiles.safetensors")
    heads = {"bag": {"kind": "slide", "model": path}, "kind": {"kind": "classify", "model": tiles}}
    summary = tilestream.run(given(blank, tmp_path / "out", heads=heads, tiles={"tissue": "otsu"}))
    assert (summary.exit_code, summary.slides[0].tiles) == (0, 0)
    assert np.isnan(answers(tmp_path / "out")["bag"]).all()
    assert table(tmp_path / "out").obsm["kind"].shape == (0, 3)
