"""Heads that segment, in whole runs: streamed equals whole, whatever the cuts; and what was not computed is no class."""

import numpy as np
import pytest
import torch
import zarr

import tilestream
from tests.support import dense_models
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config

MODELS = "tests.support.dense_models:"
HEIGHT, WIDTH = 530, 391


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_pyramid(
        tmp_path_factory.mktemp("images") / "a.tif", make_image(HEIGHT, WIDTH, 1), compression="deflate", levels=1, mpp=0.5
    )


def segment(image, output, /, head, **sections):
    given = {"encoder": "none", "tiles": {"size": 128}, "heads": {"kinds": {"kind": "segment", **head}}, **sections}
    return tilestream.run(config(image, output, **given))


def level(output, name="0"):
    return zarr.open_array(output / "a.zarr" / "labels" / "kinds" / name, mode="r")[:]


@torch.inference_mode()
def whole_pass(model, margin):
    """One pass over the image, on white as far as the model sees."""
    pixels = np.full((HEIGHT + 2 * margin + -HEIGHT % 4, WIDTH + 2 * margin + -WIDTH % 4, 3), 255, np.uint8)
    pixels[margin : margin + HEIGHT, margin : margin + WIDTH] = make_image(HEIGHT, WIDTH, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    out = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())[0]
    torch.set_num_threads(threads)
    stride = len(pixels) // out.shape[1]
    edge = margin // stride
    return out[:, edge : edge - (-HEIGHT // stride), edge : edge - (-WIDTH // stride)].numpy()


@pytest.mark.parametrize("model", ["dilated41", "strided41"])
def test_labels_equal_one_pass_over_the_whole_image(image, tmp_path, model):
    summary = segment(image, tmp_path / "out", {"model": MODELS + model, "size": 192})
    assert summary.exit_code == 0
    expected = whole_pass(getattr(dense_models, model)(), 100).argmax(0) + 1
    np.testing.assert_array_equal(level(tmp_path / "out"), expected)
