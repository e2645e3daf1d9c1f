"""In fp16, a tile whose result leaves the range is computed again in fp32: by itself alone, whatever its neighbours, and it is told."""

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn

import tilestream
from tests.support.images import make_image, write_pyramid
from tilestream.runner.progress import slide_words
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.source import TiffSource
from tilestream.stages import hardware
from tilestream.stages.clock import Clock
from tilestream.stages.encoding.reading import DeviceReading
from tilestream.stages.encoding.wide import beyond_range
from tilestream.stages.hardware import cast_encoder, pick_precision
from tilestream.stages.worker import Worker
from tilestream.stages.worker_settings import WorkerSettings
from tilestream.tiles.read_spec import ReadSpec


class Bright(nn.Module):
    """Two features of a tile's mean; of bright tiles the first is beyond 65,504."""

    dim, precisions = 2, ("fp32", "bf16", "fp16")

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[400.3], [1.7]]))
            self.linear.bias.copy_(torch.tensor([0.0, 0.1]))

    def forward(self, images):
        mean = images.float().mean(dim=(1, 2, 3))[:, None].to(self.linear.weight.dtype)
        return self.linear(mean)


SIDE = 32


def picture(path):
    """128 x 256 px whose right half is bright."""
    image = make_image(128, 256, 1) // 2
    image[:, 128:] = 255 - image[:, 128:] // 4
    write_pyramid(path, image, tile=64, levels=1, compression="deflate")
    return image


def embed(batch, order, path, *, on_device=False):
    """Results of all tiles read in an order, as rows of the grid; and which were computed again."""
    settings = WorkerSettings(
        encoder="tests:own", weights=None, args="{}", precision="fp16", device="cpu", tile=SIDE, batch=batch, compile=None, isolate=False,
        threads=1, decode="cpu", decode_processes=False, compute_threads=None,
    )  # fmt: skip
    worker = Worker(settings, Bright())
    if on_device:
        worker.reading = DeviceReading(worker.reading, worker.device, None)  # as on CUDA
    source = TiffSource(str(path), SourceOptions())
    y, x = (a.ravel().astype(np.int64)[order] for a in np.mgrid[0:128:SIDE, 0:256:SIDE])
    out, redone = np.full((len(y), 2), np.nan, np.float32), set()
    with closing(worker.embed_tiles(source, ReadSpec(0, 1.0, SIDE, 1.0), y, x, Clock())) as parts:
        for part in parts:
            out[order[part.index]] = part.out
            redone |= set(order[list(part.redone)].tolist()) if part.redone else set()
    worker.close()
    return out, redone


def test_rows_beyond_the_range_are_computed_in_fp32_whatever_is_beside_them(tmp_path):
    image = picture(tmp_path / "a.tif")
    tiles = image.reshape(4, SIDE, 8, SIDE, 3).swapaxes(1, 2).reshape(32, SIDE, SIDE, 3)
    means = torch.from_numpy(tiles).float().mean(dim=(1, 2, 3))[:, None]
    narrow = Bright().half()
    weight, bias = narrow.linear.weight.float(), narrow.linear.bias.float()
    expected, beyond = nn.functional.linear(means, weight, bias).detach().numpy(), set(np.flatnonzero(means[:, 0].numpy() > 164))
    assert 8 < len(beyond) < 24
    plain = np.arange(32)
    first, redone = embed(5, plain, tmp_path / "a.tif")
    assert redone == beyond
    np.testing.assert_allclose(first[sorted(beyond)], expected[sorted(beyond)], rtol=1e-6)  # not rounded to fp16
    kept = sorted(set(range(32)) - beyond)
    with torch.no_grad():
        np.testing.assert_array_equal(first[kept], narrow.linear(means[kept].half()).float().numpy())
    for batch, order in ((1, plain), (32, plain[::-1]), (7, np.random.default_rng(0).permutation(32))):
        again, same = embed(batch, order.copy(), tmp_path / "a.tif", on_device=batch == 7)
        assert same == beyond
        np.testing.assert_array_equal(again, first)


def test_a_run_stores_them_and_says_how_many(tmp_path):
    picture(tmp_path / "a.tif")
    config = {
        "slides": str(tmp_path / "a.tif"), "output": {"path": str(tmp_path / "out"), "dtype": "float32"},
        "encoder": {"name": "tests.stages.test_half_precision:Bright", "precision": "fp16"},
        "tiles": {"size": SIDE, "level": 0, "tissue": "none"}, "compute": {"scheduler": "inline", "device": "cpu", "shard_tiles": 12},
    }  # fmt: skip
    (result,) = tilestream.run(config).slides
    assert (result.failed_tiles, result.redone) == (0, 16)
    assert slide_words(result) == "a: done, 32 of 32 tiles; 16 left the range of fp16 and were computed in fp32"
    slide = tilestream.open(tmp_path / "out")["a"]
    rows = np.asarray(slide.embeddings[:])
    assert np.isfinite(rows).all()
    assert (rows.max(axis=1) > 65_504).sum() == 16
    assert (slide.recipe["encoder"]["precision"], slide.recipe["encoder"]["beyond_range"]) == ("fp16", "fp32")
    (told,) = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert told["redone"] == 16


def test_what_is_finite_is_known_row_by_row():
    rows = np.ones((5, 3, 4), np.float32)
    rows[1, 2, 3], rows[2, 0, 0], rows[3, 0, :2] = np.nan, np.inf, (np.inf, -np.inf)
    assert beyond_range(rows).tolist() == [False, True, True, True, False]
    assert not beyond_range(np.full((2, 100_000), 3e38, np.float32)).any()


@pytest.mark.parametrize(
    ("capability", "offered", "dtype"),
    [
        ((9, 0), ("fp32", "bf16", "fp16"), torch.bfloat16),
        ((9, 0), ("fp32", "fp16"), torch.float16),
        ((7, 5), ("fp32", "bf16", "fp16"), torch.float16),
        ((9, 0), ("fp32", "bf16"), torch.bfloat16),
        ((6, 1), ("fp32", "bf16", "fp16"), torch.float32),
        ((9, 0), ("fp32",), torch.float32),
    ],
)
def test_auto_on_a_gpu_takes_what_is_offered_and_it_has_units_for(monkeypatch, capability, offered, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_precision("auto", torch.device("cuda"), offered) is dtype


@pytest.mark.parametrize(
    ("capability", "asked", "wide", "word"), [((9, 0), "fp16", torch.bfloat16, "bf16"), ((7, 5), "auto", torch.float32, "fp32")]
)
def test_one_that_leaves_the_range_on_probe_tiles_runs_in_a_wider_format(monkeypatch, capability, asked, wide, word):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(hardware, "_stays_finite", lambda *_: False)
    on_gpu = torch.device("cuda")
    monkeypatch.setattr(Bright, "to", lambda self, where: self if where == on_gpu else nn.Module.to(self, where))
    cast, dtype, notes, state = cast_encoder(Bright(), "own:make", asked, SIDE, on_gpu)
    assert (dtype, cast.linear.weight.dtype, state["linear.weight"].dtype) == (wide,) * 3
    assert notes == [f"own:make leaves the range of fp16 on probe tiles: it runs in {word}"]
    monkeypatch.setattr(hardware, "_stays_finite", lambda *_: True)
    cast, dtype, notes, state = cast_encoder(Bright(), "own:make", asked, SIDE, on_gpu)
    assert (dtype, cast.linear.weight.dtype, state["linear.weight"].dtype, notes) == (torch.float16, torch.float16, torch.float16, [])
