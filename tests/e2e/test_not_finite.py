"""What gives no number for a tile that has an embedding is counted, told and ends with 4: heads, contexts and pools."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tilestream
from tests.e2e.test_heads import table
from tests.support.heads import CLASSES, head_file
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given, newest_record
from tilestream.encoders.heads.head_file import HeadAbout, write_head
from tilestream.models.context import ContextTransformer
from tilestream.models.pooling import make_pool
from tilestream.runner.progress import slide_words

ODD = "tests.support.heads:odd_is_nan"


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(900, 900, 1), compression="deflate", levels=1, mpp=0.5)


def poisoned(module, path):
    """A file of its weights, all NaN, as a training that diverged leaves them."""
    state = {
        name: torch.full_like(value, torch.nan) if value.is_floating_point() else value.clone()
        for name, value in module.state_dict().items()
    }
    save_file(state, path)
    return str(path)


def context(folder):
    module = ContextTransformer(12, depth=1, heads=2, window=4, position="none")
    return {"window": 4, "depth": 1, "heads": 2, "position": "none", "weights": poisoned(module, folder / "context.safetensors")}


def bag(folder):
    path, module = head_file(folder / "bag.safetensors", kind="slide", model="abmil")
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    write_head(folder / "bag.safetensors", module, HeadAbout("slide", "abmil", "tiles", 12, 3, classes=CLASSES))
    return {"heads": {"bag": {"kind": "slide", "model": path}}}


ALL = 15 * 15
CASES = {
    "rows": (lambda folder: {"heads": {"odd": {"kind": "classify", "model": ODD}}}, {"odd": None}, "head odd lacks {} answers"),
    "pixels": (
        lambda folder: {"heads": {"red": {"kind": "classify", "input": "pixels", "model": "tests.support.heads:red_is_nan"}}},
        {"red": ALL},
        "head red lacks {} answers",
    ),
    "bag": (bag, {"bag": 1}, "head bag lacks {} answer"),
    "context": (lambda folder: {"context": context(folder)}, {"context": ALL}, "context of {} tiles is not finite"),
    "pool": (
        lambda folder: {"pool": {"name": "gated_attention", "weights": poisoned(make_pool("gated_attention", 12, None), folder / "pool.safetensors")}},
        {"slide vector": 1},
        "slide vector is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_finite_of_sound_tiles_is_counted_and_ends_with_4(image, tmp_path, case):
    sections, lacking, words = CASES[case]
    settings = given(image, tmp_path / "out", compute={"shard_tiles": 64}, **sections(tmp_path))
    summary = tilestream.run(settings)
    if case == "rows":
        rows = tilestream.open(tmp_path / "out" / "a.zarr").embeddings[:]
        lacking = {"odd": int((rows[:, 0].round() % 2 == 1).sum())}
        assert lacking["odd"] == np.isnan(table(tmp_path / "out").obsm["odd"]).any(axis=1).sum() > 0
    assert (summary.exit_code, summary.failed_tiles, summary.slides[0].unanswered) == (4, 0, lacking)
    assert words.format(*lacking.values()) in slide_words(summary.slides[0])
    record, state = newest_record(tmp_path / "out"), json.loads((tmp_path / "out" / "run.json").read_text())
    for told in (record, state):
        assert (told["exit_code"], told["slides"][0]["unanswered"]) == (4, lacking)
    for again in ({}, {"retry_failed": True}):
        found = tilestream.run(settings, **again)
        assert (found.exit_code, found.new_tiles, found.slides[0].unanswered) == (4, 0, lacking)


@pytest.mark.parametrize("case", ["rows", "pixels", "bag"])
def test_a_head_whose_answer_is_not_finite_refuses_the_slide_where_no_tile_may_fail(image, tmp_path, case):
    summary = tilestream.run(given(image, tmp_path / "out", on_error={"tile": "fail"}, **CASES[case][0](tmp_path)))
    assert summary.exit_code == 3
    assert "the head's output is not finite (on_error.tile is fail" in summary.slides[0].error


@pytest.mark.parametrize("case", ["bag", "pool", "context"])
def test_a_slide_of_tiles_that_all_failed_lacks_no_answer_of_theirs(image, tmp_path, case):
    settings = given(image, tmp_path / "out", **CASES[case][0](tmp_path), encoder="tests.support.heads:nothing_finite")
    summary = tilestream.run(settings)
    assert (summary.exit_code, summary.failed_tiles, summary.slides[0].unanswered) == (4, ALL, {})
