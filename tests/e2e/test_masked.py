"""From slides to a context that was fitted without labels, and runs that take it: `run`, `fit`, `run`."""

import numpy as np
import pytest
import torch

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given, opened
from tilestream.config.load import load_config
from tilestream.encoders.contexts.context_file import read_context_about
from tilestream.encoders.weights import load_weights
from tilestream.errors import ConfigError
from tilestream.runner.plan_command import plan_slides

SIDE = 512
TILES = {"size": 64, "level": None, "mpp": 0.5, "tissue": "none"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with three slides, their embeddings, and a context that was fitted on them."""
    folder = tmp_path_factory.mktemp("fitted")
    for seed in range(3):
        write_pyramid(folder / f"s{seed}.tif", make_image(SIDE, SIDE, seed), tile=128, levels=1, mpp=0.5)
    tilestream.run(given(folder / "s*.tif", folder / "out", tiles=TILES))
    tilestream.fit(
        {
            "embeddings": str(folder / "out"),
            "target": {"masked": {"window": 4, "width": 16, "heads": 2, "depth": 2, "passes": 2}},
            "split": {"held_out": ["s2"]},
            "save": str(folder / "context.safetensors"),
            "device": "cpu",
        }
    )
    return folder


def with_context(folder, output, /, **sections):
    context = {"weights": str(folder / "context.safetensors"), "exact": True, **sections.pop("context", {})}
    return given(folder / "s0.tif", output, context=context, **{"tiles": TILES, **sections})


def test_a_run_takes_the_shape_from_the_file_and_gives_what_the_module_gives(fitted, tmp_path):
    summary = tilestream.run(with_context(fitted, tmp_path / "out"))
    assert summary.exit_code == 0
    slide = opened(tmp_path / "out", "s0")
    about = read_context_about(fitted / "context.safetensors")
    model = about.build()
    model.load_state_dict({key: value.float() for key, value in load_weights(fitted / "context.safetensors").items()})
    row, col = (torch.from_numpy(slide.read_column(name).astype(np.int64)) for name in ("row", "col"))
    with torch.inference_mode():
        whole = model(torch.from_numpy(np.asarray(slide.embeddings[:], np.float32)), row, col, 32.0)
    np.testing.assert_array_equal(slide.context[:], whole.numpy())
    assert slide.recipe["context"]["width"] == 16


def test_streamed_equals_dense_with_a_fitted_context(fitted, tmp_path):
    found = []
    for schedule, shard in (("dense", 64), ("row_bands", 16), ("halo_shards", 10)):
        tilestream.run(with_context(fitted, tmp_path / schedule, context={"schedule": schedule}, compute={"shard_tiles": shard}))
        found.append(opened(tmp_path / schedule, "s0").context[:])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tiles": {**TILES, "mpp": 1.0}}, r"was fitted on 0\.5 µm/px, but tiles\.mpp is 1\."),
        ({"tiles": {**TILES, "size": 128}}, r"tiles\.size 64 px, but it is 128"),
        ({"tiles": {**TILES, "stride": 32}}, r"tiles\.stride 64 px, but it is 32"),
        ({"encoder": "tests.support.encoders:mean_rgb"}, r"was fitted on tests\.support\.encoders:corners, but encoder\.name is tests\.support\.encoders:mean_rgb"),
        ({"context": {"window": 8}}, r"context\.window: 8, but .* was fitted with 4"),
    ],
    ids=["mpp", "size", "stride", "encoder", "shape"],
)  # fmt: skip
def test_a_context_for_something_else_is_refused(fitted, tmp_path, sections, words):
    with pytest.raises(ConfigError, match=words):
        tilestream.run(with_context(fitted, tmp_path / "out", **sections))
    with pytest.raises(ConfigError, match=words):
        plan_slides(load_config(with_context(fitted, tmp_path / "out", **sections)))
