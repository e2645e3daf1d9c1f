"""For each preset, the table, the encoder and the store say alike what a vector is, and the store holds it."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tilestream
from tests.support.images import make_image, write_svs
from tests.support.random_models import randomised, relative_error
from tilestream.cli import app
from tilestream.encoders.preset_encoders import preset_vit
from tilestream.encoders.presets import PRESETS

NATIVE = [name for name, preset in PRESETS.items() if preset.vit is not None and not preset.bands]
QUICK = {"uni", "gigapath-flash", "phikon", "kaiko-vits8", "lunit-vits8", "dinov2-s", "dinov3-s", "keep", "h0-mini", "rudolfv2-s"}


@pytest.fixture(scope="module")
def printed():
    """Rows of tiles in `tilestream encoders --json`, by name."""
    return {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["encoders", "--json"]).stdout) if row["kind"] == "tile"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NATIVE])
def test_table_encoder_and_store_say_alike_what_a_vector_is(name, printed, tmp_path):
    encoder, row = randomised(preset_vit(PRESETS[name], depth=1)), printed[name]
    encoder.precisions = ("fp32",)
    side = row["tile_size"]
    assert (encoder.dim, encoder.tile_size, encoder.vector, encoder.mpp) == (row["dim"], side, row["output"], row["mpp"])
    picture = make_image(side, side, seed=3)
    write_svs(tmp_path / "a.svs", picture, mpp=row["mpp"] or 0.5, compression="deflate", photometric="rgb", subsampling=None)
    tilestream.run(
        {
            "slides": str(tmp_path / "a.svs"), "output": {"path": str(tmp_path / "out"), "dtype": "float32"}, "encoder": encoder,
            "tiles": {"size": side, "level": 0, "tissue": "none"}, "compute": {"scheduler": "inline", "device": "cpu", "batch_size": 1},
        }
    )  # fmt: skip
    slide = tilestream.open(tmp_path / "out")["a"]
    assert slide.recipe["encoder"]["vector"] == row["output"]
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(picture).permute(2, 0, 1)[None])
    assert slide.embeddings.shape == (1, row["dim"])
    assert relative_error(torch.from_numpy(np.asarray(slide.embeddings[:])), expected) < 1e-5


def test_presets_of_other_libraries_say_what_their_vector_is(printed):
    for name, preset in PRESETS.items():
        assert printed[name]["output"], name
        if name.startswith("rudolfv2"):
            assert "must be said" in printed[name]["note"]
        if preset.through == "module:factory":
            assert printed[name]["dim"] == preset.other["dim"]
