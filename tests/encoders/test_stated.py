"""What is said of an encoder without building it is what it is once it is built."""

import pytest

from tilestream.config.load import load_config
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.preset_encoders import preset_vit
from tilestream.encoders.presets import PRESETS
from tilestream.encoders.stated import state_encoder
from tilestream.runner.plan_command import state_setup
from tilestream.stages.embed_tiles import describe_encoder
from tilestream.stages.worker_settings import worker_settings

SAME = ("dim", "tokens", "tile_size", "mpp", "mpp_range", "parameters", "untrained", "device", "precision", "batch", "threads", "vector")


@pytest.mark.parametrize(
    ("name", "args", "tile"),
    [
        ("tilestream-tiny", {}, 224),
        ("tilestream-lite", {}, 256),
        ("tilestream-lite", {"output": "tokens"}, 224),
        ("vit_tiny_patch16_224", {"img_size": 96, "output": "tokens", "registers": 3, "layer_scale": 0.1, "class_token": False}, 96),
    ],
)
def test_a_plan_knows_what_a_worker_measures(name, args, tile):
    raw = {
        "slides": "a.svs", "output": "o", "tiles": {"size": tile, "mpp": 0.5}, "encoder": {"name": name, "args": args}, "compute": {"device": "cpu", "batch_size": 4},
    }  # fmt: skip
    config = load_config(raw)
    settings = worker_settings(config)
    stated, (measured, _) = state_setup(config, settings, 1, 1).facts, describe_encoder(settings)
    assert {key: getattr(stated, key) for key in SAME} == {key: getattr(measured, key) for key in SAME}


@pytest.mark.parametrize("name", ["dinov2-s", "dinov3-s", "gigapath-flash", "kaiko-vits8"])
def test_presets_with_a_file_of_weights_are_known_by_their_shape(name, tmp_path):
    built, stated = preset_vit(PRESETS[name]), state_encoder(EncoderSpec(name, str(tmp_path)), 224)
    assert stated.parameters == sum(value.numel() for value in built.parameters())
    assert (stated.dim, stated.tile_size, stated.vector, stated.mpp) == (built.dim, built.tile_size, built.vector, built.mpp)


@pytest.mark.parametrize(
    ("name", "weights", "args"),
    [
        ("timm:resnet18", None, {}),
        ("tests.support.encoders:mean_rgb", None, {}),
        ("vit_tiny_patch16_224", "gone.safetensors", {}),
        ("vit_tiny_patch16_224", None, {"depht": 3}),
        ("dinov2-s", None, {}),
        ("tilestream-lite", None, {"output": "class"}),
    ],
)
def test_what_only_building_tells_is_not_stated(name, weights, args):
    assert state_encoder(EncoderSpec(name, weights, args), 224) is None
