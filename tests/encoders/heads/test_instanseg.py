"""A TorchScript program of InstanSeg's form, made here: it must run under its own name only, and its objects be each found once. Judge: scipy."""

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

import tilestream
from tests.support.images import write_pyramid
from tests.support.made_nuclei import place_nuclei
from tests.support.runs import config
from tilestream.config.heads import Head
from tilestream.encoders.heads.instanseg import spread_values
from tilestream.encoders.heads.load import load_head
from tilestream.errors import CodeError, ConfigError, InputError

SIDE = 700


class Program(nn.Module):
    """Dark pixels that hang together, as (n, outputs, h, w) float labels; from pixels between 0 and 1, as InstanSeg's are."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        dark = (pixels.mean(1, keepdim=True) < 0.5).float()
        height, width = pixels.shape[-2:]
        labels = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, 1, height, width) * dark
        for _ in range(80):
            labels = functional.max_pool2d(labels, 3, 1, 1) * dark
        return labels.repeat(1, self.outputs, 1, 1)


def saved(path, program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(program.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    y, x = np.ogrid[:SIDE, :SIDE]
    for row, col, radius in place_nuclei(SIDE, 250, 0).tolist():
        pixels[(y - row) ** 2 + (x - col) ** 2 <= radius**2] = (60, 20, 90)
    return write_pyramid(tmp_path_factory.mktemp("images") / "a.tif", pixels, compression="deflate", levels=1, mpp=0.5), pixels


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_object_is_found_once_and_the_run_says_that_code_runs(image, tmp_path, outputs):
    path, pixels = image
    program = saved(tmp_path / "nuclei.pt", Program(outputs))
    head = {"kind": "detect", "model": f"instanseg:{program}", "size": 256}
    summary = tilestream.run(config(path, tmp_path / "out", encoder="none", tiles={"size": 100, "tissue": "none"}, heads={"nuclei": head}))
    assert summary.exit_code == 0
    found = pq.read_table(tmp_path / "out" / "a.zarr" / "shapes" / "nuclei.parquet").to_pydict()
    labels, count = ndimage.label(pixels.mean(2) < 128, np.ones((3, 3)))
    wanted = sorted((cols.start, rows.start, cols.stop, rows.stop) for rows, cols in ndimage.find_objects(labels))
    assert sorted(tuple(each) for each in shapely.bounds(shapely.from_wkb(found["geometry"])).astype(int).tolist()) == wanted
    assert set(found["class"]) == {"nucleus"}
    assert count > 200
    loaded = load_head(Head.model_validate(head), "nuclei")
    assert "it runs code of whoever made it" in loaded.notes[0]
    assert (loaded.mpp, loaded.overlap) == (0.5, 80)


def test_pixels_are_spread_between_percentiles():
    pixels = torch.randint(0, 256, (2, 3, 64, 50)).float()
    found = spread_values(pixels)
    for k in range(2):
        for channel in range(3):
            low, high = np.percentile(pixels[k, channel].numpy(), [0.1, 99.9])
            np.testing.assert_allclose(found[k, channel], (pixels[k, channel].numpy() - low) / (high - low), rtol=1e-5, atol=1e-6)


def test_a_program_is_not_run_for_its_ending(tmp_path):
    program = saved(tmp_path / "nuclei.pt", Program(1))
    with pytest.raises(ConfigError, match=r"run code of whoever made them: only those of InstanSeg are run, and only as instanseg:FILE.pt"):
        load_head(Head.model_validate({"kind": "detect", "model": str(program)}), "nuclei")
    with pytest.raises(InputError, match=r"heads.nuclei.model: .*gone.pt does not exist"):
        load_head(Head.model_validate({"kind": "detect", "model": f"instanseg:{tmp_path}/gone.pt"}), "nuclei")
    (tmp_path / "no.pt").write_bytes(b"no program")
    with pytest.raises(CodeError, match=r"loading its program"):
        load_head(Head.model_validate({"kind": "detect", "model": f"instanseg:{tmp_path}/no.pt"}), "nuclei")
    with pytest.raises(ConfigError, match=r"is a head of kind detect"):
        load_head(Head.model_validate({"kind": "classify", "input": "pixels", "model": f"instanseg:{program}"}), "nuclei")
