"""What parts of a run say of their own bytes, held against what they take; whole runs are measured by the benchmark."""

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import zarr

from tests.support.images import make_image, write_pyramid
from tilestream.models.context import ContextTransformer
from tilestream.runner.memory import SLACK, Projection
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles.thumbnail import read_thumbnail, thumbnail_bytes

MIB = 2**20
SIDE = 512
NOISE = np.random.default_rng(0)


def jpeg(path):
    return write_pyramid(path / "a.tif", make_image(SIDE, SIDE), tile=256, levels=1), SourceOptions()


def tiff(path, kind, options, **coding):
    pixels = NOISE.integers(0, 200, (SIDE, SIDE, 3)).astype(kind)
    if coding.get("planarconfig") == "separate":
        pixels = pixels.transpose(2, 0, 1)
    tifffile.imwrite(
        path / "a.tif", pixels, photometric="rgb", compression="deflate", resolution=(20000, 20000), resolutionunit=3, **coding
    )
    return path / "a.tif", SourceOptions(**options)


def array(path, channels, deep, chosen):
    pixels = NOISE.integers(0, 4096, (channels, SIDE, SIDE), np.uint16)
    made = zarr.create_array(path / "a.zarr", shape=pixels.shape, chunks=(deep, 256, 256), dtype="uint16", dimension_names=["c", "y", "x"])
    made[:] = pixels
    return path / "a.zarr", SourceOptions(window=(0, 4095), channels=chosen)


SOURCES = {
    "jpeg": jpeg,
    "deflate": lambda path: tiff(path, "uint8", {}, tile=(256, 256)),
    "deflate with predictor": lambda path: tiff(path, "uint16", {"window": (0, 200)}, tile=(256, 256), predictor=True),
    "planes": lambda path: tiff(path, "uint16", {"window": (0, 200)}, tile=(256, 256), planarconfig="separate"),
    "float32": lambda path: tiff(path, "float32", {"window": (0, 200)}, tile=(256, 256)),
    "strips": lambda path: tiff(path, "uint8", {}, rowsperstrip=128),
    "30 channels in a chunk": lambda path: array(path, 30, 30, (0, 10, 29)),
    "30 channels, one in a chunk": lambda path: array(path, 30, 1, (0, 10, 29)),
    "3 channels of 16 bits": lambda path: array(path, 3, 3, (2, 1, 0)),
}


def allocated(work):
    """Most bytes that Python and numpy hold at once while `work` runs in a thread of its own, whose buffers are new."""
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_thread_holds_no_more_than_the_source_says_and_not_much_less(tmp_path, kind):
    path, options = SOURCES[kind](tmp_path)
    with open_source(str(path), options) as source:
        stated = source.held_bytes(0, 0)
        taken = allocated(lambda: [source.read_segment(0, 0, 0), source.read_segment(0, 1, 0)][:0])
    assert taken <= stated + MIB // 4
    assert stated <= 2.2 * taken


@pytest.mark.parametrize("kind", ["jpeg", "strips", "30 channels in a chunk", "30 channels, one in a chunk", "float32"])
def test_a_thumbnail_takes_no_more_than_it_says(tmp_path, kind):
    path, options = SOURCES[kind](tmp_path)
    with open_source(str(path), options) as source:
        assert allocated(lambda: read_thumbnail(source)) <= thumbnail_bytes(source) + MIB // 4


@pytest.mark.parametrize("position", ["sincos", "learned", "rope", "bias", "log_bias", "none"])
@pytest.mark.parametrize(("dim", "depth", "window"), [(64, 1, 4), (192, 4, 8), (384, 8, 16)])
def test_a_context_says_what_its_weights_take(dim, depth, window, position):
    model = ContextTransformer(dim=dim, depth=depth, heads=4, window=window, position=position)
    weights = sum(value.numel() * 4 for value in model.state_dict().values())
    assert weights <= model.spec.model_bytes <= 2 * weights + MIB


def test_a_projection_is_the_sum_of_a_workers_parts_and_never_less_than_was_seen():
    parts = {"program": 300, "planning": 5, "tiles": 20, "decoding": 3, "shards": 7, "context": 11, "heads": 4, "finishing": 2}
    small = Projection(**{name: value * MIB for name, value in parts.items()}, seen=0)
    assert small.total == small.worker == sum(parts.values()) * MIB + SLACK
    assert Projection(**{name: value * MIB for name, value in parts.items()}, seen=900 * MIB).total == 900 * MIB


@pytest.mark.slow
def test_what_the_callers_process_held_before_does_not_count_against_the_limit(tmp_path):
    """In a process of its own: a notebook with an array, and after it a run whose limit has no room for that."""
    script = f"""
import numpy as np, tilestream
held = np.ones(1 << 27)
summary = tilestream.run({{
    "slides": "sample://he?width=900&height=700", "output": {str(tmp_path / "out")!r}, "encoder": {{"name": "patch_embed"}},
    "tiles": {{"size": 224, "level": 0, "tissue": "none"}}, "compute": {{"scheduler": "inline", "device": "cpu", "memory_limit": "900MiB"}},
}})
assert summary.projected_bytes > summary.peak_bytes > held.nbytes, summary
tilestream.run("{tmp_path}/refused.yaml")
"""
    (tmp_path / "refused.yaml").write_text(
        f"slides: sample://he?width=900&height=700\noutput: {tmp_path}/other\nencoder: {{name: patch_embed}}\n"
        "tiles: {size: 224, level: 0, tissue: none}\ncompute: {scheduler: inline, device: cpu, memory_limit: 300MiB}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ConfigError: compute.memory_limit" in done.stderr, done.stderr
    assert (tmp_path / "out" / "run.json").exists()
