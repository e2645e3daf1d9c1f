"""A timm model gives what timm pools, from pixels as its own configuration has them, and says what that is."""

import pytest
import torch
from PIL import Image

from tests.support.random_models import library, normalised, randomised, relative_error, through_pillow, tissue
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError
from tilestream.stages.encoding.host import HostEncoder

NORM = ", through the norm behind it"
BEHIND = ", through the layers behind it"
RULE = "by a rule of its own"
ROWS = {
    ("test_resnet", ""): "mean of the last map",
    ("test_resnet", "fast"): "mean of the last map",
    ("test_resnet", "max"): "maximum of the last map",
    ("test_resnet", "avgmax"): "average of mean and maximum of the last map",
    ("test_resnet", "catavgmax"): "mean of the last map, maximum of the last map",
    ("mobilenetv3_small_050", ""): f"mean of the last map{BEHIND}",  # its head has more features than its last map
    ("mobilenetv4_conv_small_050", ""): f"mean of the last map{BEHIND}",
    ("test_efficientnet", ""): "mean of the last map",
    ("test_convnext", ""): f"mean of the last map{BEHIND}",
    ("test_mambaout", ""): f"what timm's MambaOut gives {RULE}",
    ("swin_tiny_patch4_window7_224", ""): "mean of the last map",
    ("hiera_tiny_224", ""): f"what timm's Hiera gives {RULE}",
    ("mixer_s32_224", ""): "mean of the patch tokens",
    ("eva02_tiny_patch14_224", ""): f"mean of the patch tokens{NORM}",
    ("beit_base_patch16_224", ""): f"mean of the patch tokens{NORM}",
    ("deit_tiny_distilled_patch16_224", ""): "mean of the class token and the distillation token",
    ("cait_xxs24_224", ""): "class token",
    ("vit_small_patch16_dinov3", ""): "mean of the patch tokens",
    ("vit_base_patch16_clip_224", ""): "class token",
    ("vit_base_patch16_siglip_224", ""): "attention pool of the tokens",
    ("vit_tiny_patch16_224", ""): "class token",
    ("vit_tiny_patch16_224", "avg"): f"mean of the patch tokens{NORM}",
    ("vit_tiny_patch16_224", "max"): f"maximum of the patch tokens{NORM}",
    ("vit_tiny_patch16_224", "avgmax"): f"average of mean and maximum of the patch tokens{NORM}",
    ("vit_tiny_patch16_224", "map"): "attention pool of the tokens",
    ("test_vit3", ""): "attention pool of the tokens",
}
"""Model, the pooling that it is given in place of its own, and what its vector is."""


NARROW = {"embed_dim": 96, "num_heads": 4}
CUT = {
    "vit_base": {"depth": 2, **NARROW},
    "beit": {"depth": 2, **NARROW},
    "swin": {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "hiera": {"stages": (1, 1, 1, 1), "embed_dim": 24, "num_heads": 1},
} | {kind: {"depth": 2} for kind in ("vit", "eva", "deit", "cait")}


def cut(name):
    """Arguments that make a transformer a small one."""
    return next((options for kind, options in CUT.items() if name.startswith(kind)), {})


def pair(name, folder, **options):
    """timm's model with random weights, and the file of them."""
    theirs = randomised(library("timm").create_model(name, pretrained=False, **cut(name), **options))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    return theirs, str(folder / "weights.pth")


def seen(theirs, tiles):
    return normalised(tiles, theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])


@pytest.mark.parametrize(("name", "pooling"), ROWS)
def test_a_model_gives_what_timm_pools_twice_alike_and_says_what_that_is(name, pooling, tmp_path):
    options = {"global_pool": pooling} if pooling else {}
    theirs, weights = pair(name, tmp_path, num_classes=0, **options)
    ours = build_encoder(EncoderSpec(f"timm:{name}", weights=weights, args=cut(name) | options))
    side = theirs.pretrained_cfg["input_size"][-1]
    tiles = tissue(side)
    with torch.inference_mode():
        expected = theirs(seen(theirs, tiles))
        found = ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
    assert (ours.dim, ours.tile_size, ours.vector) == (expected.shape[1], side, ROWS[name, pooling])


@pytest.mark.parametrize(
    "name", ["test_resnet", "swin_tiny_patch4_window7_224", "hiera_tiny_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"]
)
def test_threads_call_a_model_at_the_same_time_from_its_first_tiles_on(name, tmp_path):
    weights = pair(name, tmp_path, num_classes=0)[1]
    spec = EncoderSpec(f"timm:{name}", weights=weights, args=cut(name))
    side, threads = build_encoder(spec).tile_size, torch.get_num_threads()
    tiles = torch.randint(0, 256, (16, side, side, 3), dtype=torch.uint8)
    rows = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            run = HostEncoder(build_encoder(spec), name, 16)
            assert run.at_once == 4 * count
            rows.append(run(tiles))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*rows)


def test_registers_in_a_mean_are_not_called_patches(tmp_path):
    options = {"global_pool": "avg", "reg_tokens": 4, "pool_include_prefix": True}
    _, weights = pair("vit_tiny_patch16_224", tmp_path, **options)
    ours = build_encoder(EncoderSpec("timm:vit_tiny_patch16_224", weights=weights, args={"depth": 2, **options}))
    assert ours.vector == f"mean of all tokens{NORM}"


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


@pytest.mark.parametrize(("name", "output"), [("test_resnet", None), ("test_vit", "mean")])
def test_a_model_of_bands_takes_their_values_as_they_are(tmp_path, name, output):
    theirs, weights = pair(name, tmp_path, num_classes=0, in_chans=5)
    ours = build_encoder(EncoderSpec(f"timm:{name}", weights, {"in_chans": 5, **({"output": output} if output else {}), **cut(name)}))
    side = ours.tile_size
    tiles = torch.randn(2, 5, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = theirs.forward_features(tiles)[:, theirs.num_prefix_tokens :].mean(dim=1) if output else theirs(tiles)
        assert relative_error(ours(tiles), expected) < 1e-5
    assert (ours.bands, ours.takes_larger_tiles) == (5, False)
    assert f"tiles of {side} px of 5 bands are fed as they are" in ours.notes[0]
