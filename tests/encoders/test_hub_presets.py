"""Presets that other libraries build give those libraries' own vectors, from repositories laid out as their authors published them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.support.random_models import library, normalised, randomised, relative_error, tissue
from tilestream.cli import app
from tilestream.encoders.catalogue import EncoderSpec, known_encoders
from tilestream.encoders.presets import CLIP, IMAGENET, PRESETS
from tilestream.encoders.registry import build_encoder

SIDE, DEPTH = 224, 2
CLIPS = ("plip", "quiltnet")
TIMMS = {
    "pathorchestra": ("vit_large_patch16_224", {"init_values": 1e-5}, "pytorch_model.bin"),
    "prost40m": ("vit_small_patch14_dinov2", {"img_size": SIDE}, "model.safetensors"),
}
"""Shape, what it takes beside the depth, and the file of the weights."""


@pytest.fixture(scope="module")
def tiles():
    """(2, 3, 224, 224) uint8 of made tissue."""
    return tissue(SIDE)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that makes the folder of a preset's repository in an empty cache; the hub itself is out of reach."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def make(name):
        home = tmp_path / f"models--{PRESETS[name].repository.replace('/', '--')}"
        folder = home / "snapshots" / "0123abc"
        folder.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(folder.name)
        return folder

    return make


def save_clip(model, folder):
    """As CLIPs of their time lie on the hub: both towers in a .bin, and a processor of the older form."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    mean, std = CLIP
    processor = {
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor | {"size": SIDE, "crop_size": SIDE, "image_mean": mean, "image_std": std})
    )


def save_timm(model, name, folder):
    """As timm publishes a model: its architecture, arguments and pixels in config.json."""
    from safetensors.torch import save_file

    shape, arguments, file = TIMMS[name]
    mean, std = IMAGENET
    pixels = {
        "input_size": [3, SIDE, SIDE],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
    }
    pixels |= {"num_classes": 0, "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
    given = {"depth": DEPTH, **{key: value for key, value in arguments.items() if key not in PRESETS[name].arguments}}
    written = {"architecture": shape, "num_classes": 0, "num_features": model.num_features, "global_pool": "token"}
    (folder / "config.json").write_text(json.dumps(written | {"model_args": given, "pretrained_cfg": pixels}))
    if file.endswith(".bin"):
        torch.save(model.state_dict(), folder / file)
    else:
        save_file(model.state_dict(), folder / file)


def check_row(name, ours):
    """What the table and the command say of a preset is what was built."""
    (row,) = (entry for entry in known_encoders() if entry.name == name)
    assert (row.dim, row.tile_size, row.mpp, row.output) == (ours.dim, ours.tile_size, ours.mpp, ours.vector)
    told = json.loads(CliRunner().invoke(app, ["encoders", "--json"]).stdout)
    (printed,) = (entry for entry in told if entry["name"] == name)
    assert (printed["dim"], printed["tile_size"], printed["output"]) == (ours.dim, ours.tile_size, ours.vector)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_gives_its_image_features(name, repository, tiles):
    transformers = library("transformers")
    vision = {
        "hidden_size": 768,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": SIDE,
        "patch_size": 32,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)
    theirs = randomised(transformers.CLIPModel(config))
    save_clip(theirs, repository(name))
    ours = build_encoder(EncoderSpec(name))
    with torch.inference_mode():
        expected, found = theirs.get_image_features(pixel_values=normalised(tiles, *CLIP)).pooler_output, ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
    assert ours.vector == "projection of the class token after the last norm, not scaled to unit length"
    check_row(name, ours)


@pytest.mark.parametrize("name", TIMMS)
def test_a_model_of_timm_gives_its_class_token(name, repository, tiles):
    timm = library("timm")
    shape, arguments, _ = TIMMS[name]
    theirs = randomised(timm.create_model(shape, pretrained=False, num_classes=0, depth=DEPTH, **arguments))
    save_timm(theirs, name, repository(name))
    ours = build_encoder(EncoderSpec(name))
    with torch.inference_mode():
        expected, found = theirs(normalised(tiles, *IMAGENET)), ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
        assert relative_error(theirs.forward_features(normalised(tiles, *IMAGENET))[:, 0], expected) < 1e-6
    assert ours.vector == "class token"
    check_row(name, ours)
