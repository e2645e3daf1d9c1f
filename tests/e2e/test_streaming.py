"""Streamed equals whole, for the whole program: however it is cut, resumed or shared out, the same bits come out."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed, opened

SLOW = pytest.mark.slow
HEIGHT, WIDTH, TILE = 1500, 1330, 96
TOKENS = {"name": "patch_embed", "args": {"dim": 32}}
CONTEXT = {"window": 4, "depth": 4, "heads": 4, "exact": True}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image, and a mask that leaves holes and empty rows of tiles."""
    folder = tmp_path_factory.mktemp("image")
    path = write_pyramid(folder / "a.tif", make_image(HEIGHT, WIDTH, 5), tile=256, levels=1)
    rng = np.random.default_rng(3)
    mask = np.kron(rng.random((8, 7)) < 0.7, np.ones((2, 2), bool))
    mask[6:8] = False
    Image.fromarray(mask).save(folder / "mask.png")
    return path, folder / "mask.png"


def settings(image, /, encoder=TOKENS, context=None, **compute):
    path, mask = image
    compute = {"scheduler": "inline", "threads": 2, "shard_tiles": 37} | compute
    tiles = {"size": TILE, "level": 0, "tissue": {"mask": str(mask), "min_fraction": 0.2}}
    return path, {"encoder": encoder, "context": CONTEXT | (context or {}), "tiles": tiles, "compute": compute, "pool": "gated_attention"}


def results(output):
    store = opened(output, "a")
    return store.embeddings[:], store.context[:], store.slide_vector


@pytest.fixture(scope="module")
def whole(image, tmp_path_factory):
    """The dense oracle, for patch tokens and for tile vectors."""
    found = {}
    for name, encoder in (("tokens", TOKENS), ("vectors", "tests.support.encoders:corners")):
        output = tmp_path_factory.mktemp(name)
        path, sections = settings(image, encoder, {"schedule": "dense"})
        embed(path, output, **sections)
        found[name] = results(output)
    return found


@pytest.mark.parametrize("schedule", ["row_bands", "halo_shards"])
@pytest.mark.parametrize(("shard_tiles", "batch"), [(37, 1), pytest.param(256, 64, marks=SLOW), pytest.param(4096, 7, marks=SLOW)])
@pytest.mark.parametrize("save", [["tiles", "slide"], ["tiles", "slide", "tokens"]], ids=["one_pass", "stored"])
def test_tokens_in_any_schedule_give_the_bits_of_the_whole(image, whole, tmp_path, schedule, shard_tiles, batch, save):
    path, sections = settings(image, context={"schedule": schedule}, shard_tiles=shard_tiles, batch_size=batch)
    summary = embed(path, tmp_path, output={"save": save}, **sections)
    assert ("one pass" in summary.slides[0].context) == ("tokens" not in save)
    for seen, expected in zip(results(tmp_path), whole["tokens"], strict=True):
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("schedule", ["row_bands", "halo_shards"])
@pytest.mark.parametrize(("shard_tiles", "batch"), [(37, 64), (4096, 7)])
def test_tile_vectors_in_any_schedule_give_the_bits_of_the_whole(image, whole, tmp_path, schedule, shard_tiles, batch):
    path, sections = settings(image, "tests.support.encoders:corners", {"schedule": schedule}, shard_tiles=shard_tiles, batch_size=batch)
    embed(path, tmp_path, **sections)
    for seen, expected in zip(results(tmp_path), whole["vectors"], strict=True):
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    "save", [["tiles", "slide"], pytest.param(["tiles", "slide", "tokens"], marks=pytest.mark.slow)], ids=["one_pass", "stored"]
)
def test_two_processes_give_the_bits_of_one(image, whole, tmp_path, save):
    path, sections = settings(image, scheduler="local", workers=2, threads=1, memory_limit="1GiB")
    summary = embed(path, tmp_path, output={"save": save}, **sections)
    assert summary.slides[0].context
    for seen, expected in zip(results(tmp_path), whole["tokens"], strict=True):
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("save", [["tiles", "slide"], ["tiles", "slide", "tokens"]], ids=["one_pass", "stored"])
@pytest.mark.parametrize("schedule", ["row_bands", "halo_shards"])
def test_any_shards_that_are_missing_come_out_the_same_again(image, whole, tmp_path, save, schedule):
    path, sections = settings(image, context={"schedule": schedule}, shard_tiles=20)
    embed(path, tmp_path, output={"save": save}, **sections)
    ledger = tmp_path / "a.zarr" / ".tilestream"
    (ledger / "complete.json").unlink()
    names = sorted(p.name for p in (ledger / "shards").iterdir())
    for name in [n for n in names if n.startswith("context")][3:]:
        (ledger / "shards" / name).unlink()
    for name in [n for n in names if n.startswith("tiles")][-2:]:
        (ledger / "shards" / name).unlink()
    summary = embed(path, tmp_path, output={"save": save}, **sections)
    assert 20 < summary.new_tiles <= 40
    for seen, expected in zip(results(tmp_path), whole["tokens"], strict=True):
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.slow
def test_a_run_that_is_killed_between_stages_resumes_and_ends_the_same(image, whole, tmp_path):
    path, sections = settings(image, shard_tiles=8, batch_size=8)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config(path, tmp_path / "out", **sections)))
    shards = tmp_path / "out" / "a.zarr" / ".tilestream" / "shards"
    for stage in ("tiles", "context"):
        run = subprocess.Popen([sys.executable, "-m", "tilestream", "run", str(file)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while run.poll() is None and not (shards.is_dir() and any(p.name.startswith(stage) for p in shards.iterdir())):
            time.sleep(0.002)
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
        run.wait()
    embed(path, tmp_path / "out", **sections)
    for seen, expected in zip(results(tmp_path / "out"), whole["tokens"], strict=True):
        np.testing.assert_array_equal(seen, expected)
