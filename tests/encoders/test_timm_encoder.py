"""A timm model gives what timm pools, from pixels as its own configuration has them, and says what that is."""

import pytest
import torch
from PIL import Image

from tests.support.random_models import library, normalised, randomised, relative_error, through_pillow, tissue
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError

POOLED = {
    "test_resnet": "mean of the last map",
    "mobilenetv3_small_050": "mean of the last map, through the layer behind it",  # its head has more features than its last map
    "test_efficientnet": "mean of the last map",
    "test_convnext": "mean of the last map",
    "eva02_tiny_patch14_224": "mean of the patch tokens",
    "vit_tiny_patch16_224": "class token",
}


def cut(name):
    """Arguments that cut a transformer's depth."""
    return {"depth": 2} if "vit" in name or "eva" in name else {}


def pair(name, folder):
    """timm's model with random weights, and the file of them."""
    theirs = randomised(library("timm").create_model(name, pretrained=False, **cut(name)))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return theirs, str(folder / "weights.pth")


def seen(theirs, tiles):
    return normalised(tiles, theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])


@pytest.mark.parametrize("name", POOLED)
def test_a_model_gives_what_timm_pools_twice_alike(name, tmp_path):
    theirs, weights = pair(name, tmp_path)
    ours = build_encoder(EncoderSpec(f"timm:{name}", weights=weights, args=cut(name)))
    side = theirs.pretrained_cfg["input_size"][-1]
    tiles = tissue(side)
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features(seen(theirs, tiles)), pre_logits=True)
        found = ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
    assert (ours.dim, ours.tile_size, ours.vector) == (expected.shape[1], side, POOLED[name])


@pytest.mark.parametrize(("name", "resize"), [("test_resnet", 168), ("test_convnext", 168)])
def test_a_larger_tile_is_resized_and_cropped_as_the_model_says(name, resize, tmp_path):
    theirs, weights = pair(name, tmp_path)
    ours = build_encoder(EncoderSpec(f"timm:{name}", weights=weights))
    mode = getattr(Image.Resampling, theirs.pretrained_cfg["interpolation"].upper())
    tiles = tissue(230)
    with torch.inference_mode():
        expected = theirs.forward_head(
            theirs.forward_features(seen(theirs, through_pillow(tiles, resize, ours.tile_size, mode))), pre_logits=True
        )
        assert relative_error(ours(tiles), expected) < 2e-3  # a grey level of rounding here and there
    assert f"larger ones are resized to {resize} px" in ours.notes[0]


def test_a_model_that_pools_nothing_is_asked_about(tmp_path):
    theirs, weights = pair("vit_tiny_patch16_224", tmp_path)
    unpooled = {"global_pool": "", "depth": 2}
    with pytest.raises(
        ConfigError, match=r"encoder\.args\.output: timm:vit_tiny_patch16_224 is configured to pool nothing .*global_pool ''"
    ):
        build_encoder(EncoderSpec("timm:vit_tiny_patch16_224", weights=weights, args=unpooled))
    tiles = tissue(224)
    with torch.inference_mode():
        tokens = theirs.forward_features(seen(theirs, tiles))
        expected = {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1)}
        expected["class+mean"] = torch.cat([expected["class"], expected["mean"]], dim=1)
        for output, value in expected.items():
            ours = build_encoder(EncoderSpec("timm:vit_tiny_patch16_224", weights=weights, args={**unpooled, "output": output}))
            assert relative_error(ours(tiles), value) < 1e-5
            assert ours.dim == value.shape[1]


def test_a_map_that_nothing_pools_is_averaged_where_that_is_said(tmp_path):
    theirs, weights = pair("test_resnet", tmp_path)
    with pytest.raises(ConfigError, match=r"a tile gives \(96, 5, 5\), .*Set it to mean\.$"):
        build_encoder(EncoderSpec("timm:test_resnet", weights=weights, args={"global_pool": ""}))
    ours = build_encoder(EncoderSpec("timm:test_resnet", weights=weights, args={"global_pool": "", "output": "mean"}))
    tiles = tissue(160)
    with torch.inference_mode():
        assert relative_error(ours(tiles), theirs.forward_features(seen(theirs, tiles)).mean(dim=(2, 3))) < 1e-5


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("test_resnet", {"output": "class"}, "cannot give that: it has no tokens"),
        ("eva02_tiny_patch14_224", {"output": "mean"}, "cannot give that: it has a norm behind its own pooling"),
        ("vit_tiny_patch16_224", {"output": "cls"}, "'cls', but it must be one of class, mean"),
        ("vit_tiny_patch16_224", {"output": "class", "class_token": False, "global_pool": "avg", "fc_norm": False}, "has no class token"),
        ("resnet_none", {}, "timm cannot make 'resnet_none'"),
    ],
)
def test_what_a_model_has_not_is_refused(name, args, message, tmp_path):
    library("timm")
    with pytest.raises(ConfigError, match=message):
        build_encoder(EncoderSpec(f"timm:{name}", weights=str(tmp_path / "none.pth"), args=args))
