"""Heads in a run: with the encoder and later, side by side, changed, damaged, and refused where they do not fit."""

import itertools
import json
import re
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch

import tilestream
from tests.support.heads import CLASSES, head_file, logarithms
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given, opened
from tilestream.cli import main
from tilestream.encoders.heads.head_file import Fitted
from tilestream.errors import ConfigError, InputError, InterruptedRunError, OutputError
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)


def table(output):
    return anndata.read_zarr(output / "a.zarr" / "tables" / "tiles")


def test_a_head_with_the_encoder_or_later_leaves_the_same_bytes_and_is_what_torch_says(image, tmp_path):
    path, module = head_file(tmp_path / "tumour.safetensors")
    heads = {"tumour": {"kind": "classify", "model": path}}
    together = tilestream.run(given(image, tmp_path / "out", heads=heads))
    assert together.exit_code == 0
    tilestream.run(given(image, tmp_path / "later"))
    later = tilestream.run(given(image, tmp_path / "later", heads=heads))
    assert (later.new_tiles, later.exit_code) == (0, 0)
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "later" / "a.zarr")
    found = table(tmp_path / "out")
    expected = torch.softmax(module(torch.from_numpy(found.X)), dim=1).numpy()
    assert np.abs(found.obsm["tumour"] - expected).max() < 1e-6
    assert list(found.obs["tumour"]) == [CLASSES[k] for k in expected.argmax(axis=1)]
    slide = opened(tmp_path / "out", "a")
    assert (list(slide.heads), slide.head_answer("tumour").classes) == (["tumour"], CLASSES)
    assert np.array_equal(slide.read_head("tumour"), found.obsm["tumour"])
    assert list(slide.read_head_classes("tumour")) == list(slide.obs["tumour"]) == list(found.obs["tumour"])
    with pytest.raises(InputError, match="has no head 'tumor'; it has tumour"):
        slide.read_head("tumor")
    with pytest.raises(InputError, match="holds no attention of head tumour"):
        slide.read_head_attention("tumour")


def test_adding_a_head_touches_no_other_and_another_model_is_refused_until_it_is_told_to(image, tmp_path, capsys):
    first, _ = head_file(tmp_path / "first.safetensors")
    second, _ = head_file(tmp_path / "second.safetensors", seed=2, model="mlp", arguments={"hidden": 7})
    one = {"one": {"kind": "classify", "model": first}}
    both = {**one, "two2": {"kind": "classify", "model": second, "save": []}}
    tilestream.run(given(image, tmp_path / "out", heads=one))
    before = bytes_of(tmp_path / "out" / "a.zarr" / "tables")
    summary = tilestream.run(given(image, tmp_path / "out", heads=both))
    assert set(summary.slides[0].seconds) == {"head two2", "write", "seal"}
    after = bytes_of(tmp_path / "out" / "a.zarr" / "tables")
    assert {key for key in before if after.get(key) != before[key]} == {key for key in before if str(key) == "tiles/obs/zarr.json"}
    found = table(tmp_path / "out")
    assert ("two2" in found.obsm, set(found.obs["two2"])) == (False, set(found.obs["two2"]) & set(CLASSES))
    tilestream.run(given(image, tmp_path / "out"))  # those that a config leaves out stay
    assert "one" in table(tmp_path / "out").obsm

    changed = given(image, tmp_path / "out", heads={**both, "one": {"kind": "classify", "model": second}})
    with pytest.raises(OutputError, match=r"another head one: heads.one.answer|another head one: heads.one.model_sha256 was .* and is now"):
        tilestream.run(changed)
    assert bytes_of(tmp_path / "out" / "a.zarr" / "tables") == after
    (tmp_path / "c.yaml").write_text(json.dumps(changed))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "c.yaml")])
    assert ended.value.code == 6
    assert "--restart heads:one" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run", "--restart", "heads:one", str(tmp_path / "c.yaml")])
    assert not ended.value.code
    tilestream.run(given(image, tmp_path / "anew", heads=changed["heads"]))
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "anew" / "a.zarr")


def test_a_head_is_refused_with_both_values_where_it_was_fitted_on_something_else(image, tmp_path):
    facts = tilestream.run(given(image, tmp_path / "out")).encoder
    right = Fitted("tests.support.encoders:corners", facts["digest"], "fp32", 64, None)
    for wrong, words in (
        (replace(right, encoder="uni"), "was fitted on uni, but encoder.name is tests.support.encoders:corners"),
        (replace(right, encoder_sha256="0" * 64), f"with weights 000000000000, but these are {facts['digest'][:12]}"),
        (replace(right, tile=256), "was fitted on tiles of 256 px, but tiles.size is 64"),
    ):
        path, _ = head_file(tmp_path / "wrong.safetensors", fitted=wrong)
        with pytest.raises(ConfigError, match=re.escape(words)):
            tilestream.run(given(image, tmp_path / "out", heads={"a": {"kind": "classify", "model": path}}))
    path, _ = head_file(tmp_path / "coarse.safetensors", fitted=replace(right, mpp=1.0))
    refused = tilestream.run(given(image, tmp_path / "out", heads={"a": {"kind": "classify", "model": path}}))
    assert "was made for 1 µm/px, but level 0 of a has 0.5" in refused.slides[0].error
    half = write_pyramid(tmp_path / "b.tif", make_image(500, 500, 1), compression="deflate", levels=2, mpp=0.5)
    path, _ = head_file(tmp_path / "fine.safetensors", fitted=replace(right, mpp=0.5))
    for level, told in ((0, ""), (1, "was made for 0.5 µm/px, but level 1 of b has 1")):
        level_run = given(half, tmp_path / f"level{level}", heads={"a": {"kind": "classify", "model": path}})
        level_run["tiles"] = {**level_run["tiles"], "mpp": None, "level": level}
        assert told in (tilestream.run(level_run).slides[0].error or "")
        assert bool(tilestream.run(level_run).slides[0].error) == bool(told)
    path, _ = head_file(tmp_path / "wide.safetensors", dim=13, fitted=right)
    with pytest.raises(ConfigError, match="takes rows of 13 features, but tiles have 12"):
        tilestream.run(given(image, tmp_path / "out", heads={"a": {"kind": "classify", "model": path}}))
    path, _ = head_file(tmp_path / "bag.safetensors", kind="slide", model="abmil", fitted=right)
    with pytest.raises(ConfigError, match=r"heads.a.kind: classify, but .* is a head of kind slide"):
        tilestream.run(given(image, tmp_path / "out", heads={"a": {"kind": "classify", "model": path}}))
    path, _ = head_file(tmp_path / "right.safetensors", fitted=right)
    assert tilestream.run(given(image, tmp_path / "out", heads={"a": {"kind": "classify", "model": path}})).exit_code == 0


def test_what_is_damaged_of_a_head_is_found_and_done_again_alone(image, tmp_path):
    path, _ = head_file(tmp_path / "one.safetensors")
    bag, _ = head_file(tmp_path / "bag.safetensors", kind="slide", model="abmil")
    settings = given(image, tmp_path / "out", heads={"one": {"kind": "classify", "model": path}, "bag": {"kind": "slide", "model": bag}})
    tilestream.run(settings)
    whole, store = bytes_of(tmp_path / "out" / "a.zarr"), tmp_path / "out" / "a.zarr"
    for name in (
        "tables/tiles/obsm/one/c/0/0",
        "tables/tiles/obs/one/codes/c/0",
        "tables/slide/obsm/bag/c/0/0",
        "tables/tiles/obs/zarr.json",
    ):
        data = (store / name).read_bytes()
        (store / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert [line.split(":")[0] for line in SlideStore(Folder(str(store))).damage()] == [name]
        SlideStore(Folder(str(store))).repair()
        assert tilestream.run(settings).new_tiles == 0
        assert bytes_of(store) == whole
    pooled = tilestream.run({**settings, "pool": "max"})  # another vector of the slide leaves its answers where they are
    assert set(pooled.slides[0].seconds) == {"pool", "seal"}
    assert SlideStore(Folder(str(store))).damage() == []


def test_tiles_that_failed_and_answers_that_are_not_finite_are_no_class(image, tmp_path):
    heads = {"odd": {"kind": "classify", "model": "tests.support.heads:odd_is_nan"}}
    summary = tilestream.run(given(image, tmp_path / "out", encoder="tests.support.encoders:nans", heads=heads))
    assert summary.failed_tiles > 0
    found = table(tmp_path / "out")
    failed = np.isnan(found.X).any(axis=1)
    odd = np.rint(np.nan_to_num(found.X[:, 0])) % 2 == 1
    nothing = np.asarray(found.obs["odd"] == "not computed")
    assert (nothing == (failed | odd)).all()
    assert (np.isnan(found.obsm["odd"]).all(axis=1) == nothing).all()
    assert set(found.obs["odd"]) <= {"not computed", "low", "high"}


def test_answers_from_stored_rows_need_neither_the_image_nor_the_encoder(image, tmp_path, monkeypatch):
    path, _ = head_file(tmp_path / "one.safetensors")
    bag, _ = head_file(tmp_path / "bag.safetensors", kind="slide", model="abmil")
    behind, _ = head_file(tmp_path / "behind.safetensors", read="context")
    base = {"context": {"window": 4, "depth": 1, "heads": 3}, "tiles": {"size": 48, "mpp": 1.0, "level": None}}
    heads = {
        "one": {"kind": "classify", "model": path}, "bag": {"kind": "slide", "model": bag},
        "behind": {"kind": "classify", "model": behind, "input": "context"},
    }  # fmt: skip
    tilestream.run(given(image, tmp_path / "anew", heads=heads, **base))
    tilestream.run(given(image, tmp_path / "out", **base))
    image.rename(tmp_path / "away.tif")
    monkeypatch.setattr("tilestream.stages.worker.build_encoder", None)
    listed = tmp_path / "slides.csv"
    listed.write_text(f"path,id\n{image},a\n")
    summary = tilestream.run(given(listed, tmp_path / "out", heads=heads, **base))
    assert (summary.exit_code, summary.new_tiles, summary.slides[0].status) == (0, 0, "done")
    assert set(summary.slides[0].seconds) == {"head one", "head bag", "head behind", "write", "seal"}
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "anew" / "a.zarr")


def test_a_run_that_is_killed_in_a_head_goes_on_from_there(image, tmp_path, monkeypatch):
    path, _ = head_file(tmp_path / "one.safetensors")
    settings = given(image, tmp_path / "out", heads={"one": {"kind": "classify", "model": path}})
    tilestream.run({**settings, "output": {"path": str(tmp_path / "whole"), "dtype": "float32"}})
    monkeypatch.setattr("tilestream.store.heads.columns.UNIT_ROWS", 16)
    tilestream.run({**settings, "output": {"path": str(tmp_path / "small"), "dtype": "float32"}})
    real, calls, committed = SlideStore.write_rows, itertools.count(1), []

    def dies_in_the_third(self, stage, number, *rest):
        if stage == "head-one" and next(calls) == 3:
            raise InterruptedRunError("killed")
        real(self, stage, number, *rest)
        if stage == "head-one":
            committed.append(number)

    monkeypatch.setattr(SlideStore, "write_rows", dies_in_the_third)
    with pytest.raises(InterruptedRunError, match="killed"):
        tilestream.run(settings)
    assert SlideStore(Folder(str(tmp_path / "out" / "a.zarr"))).damage() != []
    assert 2 <= len(committed) < 4  # a unit that was in work beside the third may have ended
    assert tilestream.run(settings).new_tiles == 0
    assert sorted(committed) == [0, 1, 2, 3]
    assert bytes_of(tmp_path / "out" / "a.zarr") == bytes_of(tmp_path / "small" / "a.zarr")
    whole, small = (table(tmp_path / name) for name in ("whole", "small"))
    assert np.array_equal(whole.obsm["one"], small.obsm["one"])


@pytest.mark.slow
def test_two_worker_processes_leave_the_bytes_of_one(image, tmp_path):
    path, _ = head_file(tmp_path / "one.safetensors")
    bag, _ = head_file(tmp_path / "bag.safetensors", kind="slide", model="abmil")
    heads = {
        "one": {"kind": "classify", "model": path}, "bag": {"kind": "slide", "model": bag},
        "red": {"kind": "classify", "input": "pixels", "model": "tests.support.heads:redness"},
    }  # fmt: skip
    for name, compute in (("inline", {}), ("two", {"scheduler": "local", "workers": 2, "threads": 1})):
        assert tilestream.run(given(image, tmp_path / name, heads=heads, compute=compute)).exit_code == 0
    assert bytes_of(tmp_path / "inline" / "a.zarr") == bytes_of(tmp_path / "two" / "a.zarr")


def test_a_plan_says_what_heads_leave_and_take_and_a_heads_name_is_no_column_of_the_list(image, tmp_path, capsys):
    path, _ = head_file(tmp_path / "one.safetensors")
    settings = given(image, tmp_path / "out", heads={"one": {"kind": "classify", "model": path}})
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "c.yaml")])
    assert not ended.value.code
    assert "head one: classify on tiles, classification: stroma, epithelium, fat; " in capsys.readouterr().out
    tight = {**settings, "compute": {**settings["compute"], "memory_limit": "64MiB"}}
    with pytest.raises(ConfigError, match=r"compute.memory_limit: .* heads [\d.]+ "):
        tilestream.run(tight)
    listed = tmp_path / "slides.csv"
    listed.write_text(f"path,id,one\n{image},a,x\n")
    with pytest.raises(ConfigError, match=r"heads\.one: the list of slides has a column of that name"):
        tilestream.run(given(listed, tmp_path / "out", heads=settings["heads"]))


def test_what_others_put_where_a_head_would_go_is_left_alone(image, tmp_path):
    path, _ = head_file(tmp_path / "one.safetensors")
    tilestream.run(given(image, tmp_path / "out"))
    own = tmp_path / "out" / "a.zarr" / "labels" / "one" / "zarr.json"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    before = bytes_of(tmp_path / "out" / "a.zarr")
    with pytest.raises(OutputError, match=r"labels/one is there already, and no head of tilestream made it"):
        tilestream.run(given(image, tmp_path / "out", heads={"one": {"kind": "classify", "model": path}}))
    assert bytes_of(tmp_path / "out" / "a.zarr") == before
    assert tilestream.run(given(image, tmp_path / "out", heads={"two": {"kind": "classify", "model": path}})).exit_code == 0
    assert own.read_text() == "mine"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"kind": "classify", "model": "tests.support.heads:shares"}, "gives probabilities, which add up to one, but logits are wanted"),
        ({"kind": "slide", "model": "tests.support.heads:shares_of_a_bag"}, "Leave its last softmax out"),
        ({"kind": "segment", "input": "pixels", "size": 64, "model": "tests.support.heads:shares_of_pixels"}, "gives probabilities"),
    ],
)
def test_softmax_is_not_taken_twice(image, tmp_path, head, words):
    with pytest.raises(ConfigError, match=words):
        tilestream.run(given(image, tmp_path / "out", heads={"a": head}))


def test_two_classes_of_one_name_are_refused_until_they_are_named(image, tmp_path):
    """AnnData could not open the store."""
    path, _ = head_file(tmp_path / "h.safetensors", classes=("a", "b", "a"))
    head = {"kind": "classify", "model": path}
    with pytest.raises(ConfigError, match=r"heads.a.classes: .* has two classes 'a'.*Name all 3 here"):
        tilestream.run(given(image, tmp_path / "out", heads={"a": head}))
    with pytest.raises(ConfigError, match=r"heads\.a\.classes: x stands there twice"):
        tilestream.run(given(image, tmp_path / "out", heads={"a": {**head, "classes": ["x", "y", "x"]}}))
    assert tilestream.run(given(image, tmp_path / "out", heads={"a": {**head, "classes": ["x", "y", "z"]}})).exit_code == 0
    assert set(table(tmp_path / "out").obs["a"].cat.categories) == {"not computed", "x", "y", "z"}


def test_logarithms_of_probabilities_are_logits(image, tmp_path):
    heads = {"a": {"kind": "classify", "model": "tests.support.heads:logarithms"}}
    assert tilestream.run(given(image, tmp_path / "out", heads=heads)).exit_code == 0
    found = table(tmp_path / "out")
    told = logarithms()(torch.as_tensor(np.asarray(found.X, np.float32))).exp().detach().numpy()
    np.testing.assert_allclose(found.obsm["a"], told, atol=1e-5)
