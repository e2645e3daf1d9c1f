"""Dense heads over a whole image: what is streamed equals one pass over all of it bit for bit, however it is cut, whoever works, whenever a run dies."""

import json
from functools import lru_cache

import numpy as np
import pytest
import torch
import zarr

import tilestream
from tests.support import dense_models
from tests.support.dense_models import whole_pass
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import start, wait_for_shard
from tests.support.runs import config
from tilestream.models.heads import patch_grid

NETS = {"dilated41": "values41", "dilated95": "values95", "strided41": "values_strided41", "strided95": "values_strided95"}
"""Nets that see 41 and 95 px, of strides 1 and 4; each with classes, and with its logits as values."""

SMALL, LONG, FULL = (530, 391), (1500, 180), (4096, 3111)

CUTS = [
    {"size": 320, "shard": 7, "blocks": (260, 1)},
    {"size": 256, "shard": 1000, "blocks": (600, 1)},
    {"size": 192, "shard": 2, "blocks": (2048, 24)},
    {"size": 380, "shard": 30, "blocks": (400, 24)},
]
"""Side of a patch, tiles of a shard, and side of a block, output px, and cores across a unit."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The path of a made image of a size."""
    folder = tmp_path_factory.mktemp("images")

    @lru_cache
    def made(shape):
        (folder / str(shape[0])).mkdir()
        return write_pyramid(folder / str(shape[0]) / "a.tif", make_image(*shape, 1), compression="deflate", levels=1, mpp=0.5)

    return made


@lru_cache(maxsize=1)
def expected(net, shape):
    """(4, h, w) logits of one pass over the image."""
    return whole_pass(getattr(dense_models, net)(), make_image(*shape, 1))


def given(path, output, net, size, **compute):
    """Classes and logits of one net, side by side."""
    own = {"kind": "segment", "size": size}
    heads = {
        "kinds": {**own, "model": f"tests.support.dense_models:{net}"},
        "logits": {**own, "model": f"tests.support.dense_models:{NETS[net]}", "classes": ["a", "b", "c", "d"]},
    }
    return config(path, output, encoder="none", tiles={"size": 128}, heads=heads, compute={"memory_limit": "8GiB", **compute})


def check_whole(output, net, shape):
    values = expected(net, shape)
    labels = output / "a.zarr" / "labels"
    assert zarr.open_array(labels / "logits" / "0", mode="r")[:].tobytes() == values.tobytes()
    found = zarr.open_array(labels / "kinds" / "0", mode="r")[:]
    np.testing.assert_array_equal(found, values.argmax(0) + 1)
    assert len(np.unique(found)) > 2  # it has something to say


def head_units(output):
    return sorted(path.name for path in (output / "a.zarr" / ".tilestream" / "shards").glob("head-*"))


@pytest.mark.parametrize(("net", "cut"), list(zip(NETS, CUTS, strict=True)))
def test_labels_and_logits_equal_one_pass_whatever_the_cuts(images, tmp_path, monkeypatch, net, cut):
    monkeypatch.setattr(patch_grid, "BLOCK_SIDE", cut["blocks"][0])
    monkeypatch.setattr(patch_grid, "STRIPE_CORES", cut["blocks"][1])
    assert tilestream.run(given(images(SMALL), tmp_path / "out", net, cut["size"], shard_tiles=cut["shard"])).exit_code == 0
    check_whole(tmp_path / "out", net, SMALL)


def with_workers(images, tmp_path, net, shape, size):
    asked = given(images(shape), tmp_path / "out", net, size, scheduler="local", workers=2, threads=1, shard_tiles=11)
    summary = tilestream.run(asked)
    assert (summary.exit_code, summary.workers) == (0, 2)
    check_whole(tmp_path / "out", net, shape)


def killed_and_resumed(images, tmp_path, net, shape, size, kills):
    """Run the command, killed whenever a unit of a head was committed, then once to its end."""
    asked = given(images(shape), tmp_path / "out", net, size, threads=1)
    (tmp_path / "c.yaml").write_text(json.dumps(asked))
    kept = []
    for _ in range(kills):
        run = start(tmp_path)
        while run.poll() is None and head_units(tmp_path / "out") == kept:
            wait_for_shard(run, tmp_path)
        run.kill()
        run.communicate()
        assert run.returncode == -9
        kept = head_units(tmp_path / "out")
        assert kept
        assert not (tmp_path / "out" / "a.zarr" / ".tilestream" / "complete.json").exists()
    assert tilestream.run(asked).exit_code == 0
    assert len(head_units(tmp_path / "out")) > len(kept)
    check_whole(tmp_path / "out", net, shape)


@pytest.mark.slow
def test_two_workers_make_of_it_what_one_pass_does(images, tmp_path):
    with_workers(images, tmp_path, "strided95", LONG, 256)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_pass_does(images, tmp_path):
    killed_and_resumed(images, tmp_path, "strided41", LONG, 256, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("net", "way"),
    [
        ("dilated95", "two workers"), ("strided41", "killed"),
    ],
)  # fmt: skip
def test_an_image_of_4096_by_3111_px_equals_one_pass(images, tmp_path, net, way):
    if way == "two workers":
        with_workers(images, tmp_path, net, FULL, 448)
    elif way == "killed":
        killed_and_resumed(images, tmp_path, net, FULL, 320, 3)
    else:
        size, shard = {"small patches": (224, 5), "large patches": (1024, 4096)}[way]
        assert tilestream.run(given(images(FULL), tmp_path / "out", net, size, shard_tiles=shard)).exit_code == 0
        check_whole(tmp_path / "out", net, FULL)


@torch.inference_mode()
def test_tiles_that_are_stitched_naively_differ_from_one_pass():
    """What the tests above would say of the plain way: every tile on its own, put side by side."""
    height, width = SMALL
    model, pixels = dense_models.dilated41(), torch.from_numpy(make_image(height, width, 1)).permute(2, 0, 1)[None].contiguous()
    stitched = np.zeros(SMALL, np.int64)
    for y in range(0, height, 160):
        for x in range(0, width, 160):
            part = model(pixels[..., y : y + 160, x : x + 160])[0].argmax(0) + 1
            stitched[y : y + 160, x : x + 160] = part.numpy()
    differs = stitched != expected("dilated41", SMALL).argmax(0) + 1
    assert differs.any()
    near_y, near_x = ((at % 160 < 20) | (at % 160 >= 140) | (at >= side - 20) for side, at in ((side, np.arange(side)) for side in SMALL))
    assert not differs[~near_y][:, ~near_x].any()  # and only where tiles meet
