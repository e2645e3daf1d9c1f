"""Files of contexts: what is written comes back, and what is none of ours is said to be so."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tilestream.config.schema import Context
from tilestream.encoders.catalogue import LITE
from tilestream.encoders.contexts.context_file import (
    BOX,
    ContextAbout,
    FittedOn,
    context_names,
    context_path,
    read_context_about,
    settle_context,
    write_context,
)
from tilestream.encoders.own_files import key_of
from tilestream.encoders.registry import EncoderSpec, build_encoder
from tilestream.encoders.weights import apply_weights, load_weights, weights_digest
from tilestream.errors import ConfigError, InputError

ABOUT = ContextAbout(
    8, 4, 2, 2, shift=True, position="bias", width=16, fitted=FittedOn("lite", "ab12", "fp32", 224, 224.0, 0.5), notes=("one", "two")
)


def test_what_is_written_comes_back(tmp_path):
    model = ABOUT.build()
    write_context(tmp_path / "a.safetensors", model, ABOUT)
    assert read_context_about(tmp_path / "a.safetensors") == ABOUT
    other = ABOUT.build()
    apply_weights(other, load_weights(tmp_path / "a.safetensors"), "a", section="context")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, atol=1e-3, rtol=1e-3)


def test_files_of_others_are_none_of_ours(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    assert read_context_about(tmp_path / "a.safetensors") is None
    context = Context(weights=str(tmp_path / "a.safetensors"), window=5)
    assert settle_context(context) == context
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_context_about(tmp_path / "b.safetensors")
    for told, words in (({"format": 9}, "another version"), ({"format": 1}, "cannot be read")):
        save_file({"a": np.zeros(3)}, tmp_path / "c.safetensors", {key_of("context"): json.dumps(told)})
        with pytest.raises(InputError, match=words):
            read_context_about(tmp_path / "c.safetensors")


def test_the_shape_is_the_files(tmp_path):
    path = str(tmp_path / "a.safetensors")
    write_context(path, ABOUT.build(), ABOUT)
    settled = settle_context(Context(weights=path, depth=2))
    assert (settled.window, settled.depth, settled.heads, settled.width, settled.position) == (4, 2, 2, 16, "bias")
    with pytest.raises(ConfigError, match=r"context\.position: rope, but .* was fitted with bias"):
        settle_context(Context(weights=path, position="rope"))


@pytest.mark.parametrize("name", context_names())
def test_a_context_in_the_box_is_small_and_has_a_card_that_says_the_same(name):
    path = BOX / f"{name}.safetensors"
    assert str(path) == context_path(name)
    assert path.stat().st_size < 4_000_000
    about = read_context_about(path)
    card = (BOX / f"{name}.md").read_text()
    assert f"{about.metrics['r2']['context']['value']:.3f}" in card
    assert f"{about.metrics['r2']['ridge']['value']:.3f}" in card
    assert about.metrics["better_than_baselines"] is True
    apply_weights(about.build(), load_weights(path), path, section="context")


def test_the_context_of_the_box_is_for_the_encoder_of_the_box():
    about = read_context_about(context_path("tilestream-lite-context"))
    assert (about.fitted.encoder, about.fitted.tile, about.fitted.mpp) == (LITE, 224, 0.5)
    assert about.fitted.precision == "fp32"
    assert about.fitted.encoder_sha256 == weights_digest(build_encoder(EncoderSpec(LITE)))
