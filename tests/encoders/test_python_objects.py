"""A module or a function that is handed to `run` in Python is an encoder in that process, and refused where others would need it."""

import pytest
import torch
from torch import nn

from tests.support.random_models import tissue
from tilestream.config.load import load_config
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError


class Means(nn.Module):
    dim = 3

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return images.float().mean(dim=(2, 3)) * self.scale


def config(tmp_path, encoder, **compute):
    return {
        "slides": "a.svs",
        "output": str(tmp_path),
        "tiles": {"mpp": 0.5},
        "encoder": encoder,
        "compute": {"scheduler": "inline", **compute},
    }


def test_a_module_in_training_stays_as_it_is(tmp_path):
    module = Means(2.0)
    name = load_config(config(tmp_path, module)).encoder.name
    built = build_encoder(EncoderSpec(name))
    assert torch.equal(built(tissue(16)), module(tissue(16)))
    assert module.training
    assert module.scale.requires_grad
    assert not built.scale.requires_grad


def test_a_function_gets_the_arguments_of_the_config(tmp_path):
    spec = load_config(config(tmp_path, {"name": Means, "args": {"scale": 3.0}})).encoder
    assert build_encoder(EncoderSpec(spec.name, args=spec.args)).scale == 3
    with pytest.raises(ConfigError, match=r"encoder\.args\.scala: .* Did you mean scale\?"):
        build_encoder(EncoderSpec(spec.name, args={"scala": 3.0}))


def test_two_objects_have_two_names_and_one_keeps_its_own(tmp_path):
    one, two = Means(1.0), Means(2.0)
    names = [load_config(config(tmp_path, module)).encoder.name for module in (one, two, one)]
    assert names[0] == names[2] != names[1]
    assert build_encoder(EncoderSpec(names[1])).scale == 2


@pytest.mark.parametrize("compute", [{"scheduler": "local", "workers": 1}, {"scheduler": "tcp://host:8786"}])
def test_other_processes_are_refused_with_the_way_out(tmp_path, compute):
    with pytest.raises(
        ConfigError, match=r"compute: scheduler is .*Means.* Set compute\.scheduler to inline, or put a function .* module:function"
    ):
        load_config(config(tmp_path, Means(), **compute))


def test_a_name_from_another_process_says_whose_it_was():
    with pytest.raises(ConfigError, match=r"encoder\.name: elsewhere\.Net was given in Python and lives in the process that made it alone"):
        build_encoder(EncoderSpec("python:elsewhere.Net"))
