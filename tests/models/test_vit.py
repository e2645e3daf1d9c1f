"""Our ViT gives timm's features from timm's checkpoints."""

import pytest
import torch

from tests.support.torchvision_ops import declare_missing_operators
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.encoders.weights import apply_weights
from tilestream.errors import ConfigError
from tilestream.models.vit import VisionTransformer, vit_tiny_patch16_224
from tilestream.models.vit_config import ViTConfig


@pytest.fixture(scope="module")
def timm():
    declare_missing_operators()  # before the first import of timm, which imports torchvision
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="module")
def tiles():
    return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(tiles, value=0.5):
    return (tiles.float() / 255 - value) / value


@pytest.fixture(scope="module")
def theirs(timm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()


@pytest.mark.parametrize(("suffix", "head"), [(".pth", True), (".safetensors", False), (".safetensors", True)])
def test_timms_vit_tiny_gives_timms_features(theirs, tiles, tmp_path, suffix, head):
    path = tmp_path / f"vit{suffix}"
    state = {key: value for key, value in theirs.state_dict().items() if head or not key.startswith("head.")}
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(state, path)
    ours = build_encoder(EncoderSpec("vit_tiny_patch16_224", weights=str(path)))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(normalised(tiles)), pre_logits=True)
        assert (ours(tiles) - expected).abs().max() < 1e-5


def test_registers_layer_scale_and_free_prefix_match_timm(timm, tiles):
    from timm.models.vision_transformer import VisionTransformer as Timm

    sizes = {"embed_dim": 96, "depth": 3, "num_heads": 3, "img_size": 224, "patch_size": 14}
    theirs = Timm(**sizes, reg_tokens=4, init_values=1e-1, no_embed_class=True, num_classes=0, dynamic_img_size=False).eval()
    ours = VisionTransformer(ViTConfig(dim=96, depth=3, heads=3, patch=14, registers=4, layer_scale=1e-1, embed_prefix=False))
    apply_weights(ours, theirs.state_dict(), "memory")
    with torch.no_grad():
        assert (ours(tiles) - theirs(normalised(tiles))).abs().max() < 1e-5


def test_norm_before_the_blocks_and_tokens_without_a_class_match_timm(timm, tiles):
    from timm.models.vision_transformer import VisionTransformer as Timm

    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 224, "patch_size": 32, "num_classes": 0}
    theirs = Timm(**sizes, pre_norm=True, class_token=False, reg_tokens=2, global_pool="").eval()
    ours = VisionTransformer(ViTConfig(dim=64, depth=2, heads=2, patch=32, registers=2, class_token=False, pre_norm=True, output="tokens"))
    apply_weights(ours, theirs.state_dict(), "memory")
    with torch.no_grad():
        assert (ours(tiles) - theirs(normalised(tiles))[:, 2:]).abs().max() < 1e-5


def test_normalised_queries_and_keys_match_timm(timm, tiles):
    from timm.models.vision_transformer import VisionTransformer as Timm

    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 224, "patch_size": 32, "num_classes": 0}
    theirs = Timm(**sizes, qk_norm=True).eval()
    ours = VisionTransformer(ViTConfig(dim=64, depth=2, heads=2, patch=32, qk_norm=True))
    apply_weights(ours, theirs.state_dict(), "memory")
    with torch.no_grad():
        assert (ours(tiles) - theirs(normalised(tiles))).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("output", "shape"), [("class", (2, 192)), ("mean", (2, 192)), ("class+mean", (2, 384)), ("tokens", (2, 196, 192))]
)
def test_a_tile_becomes_what_was_asked_for(tiles, output, shape):
    ours = vit_tiny_patch16_224(output=output)
    assert ours(tiles).shape == shape
    assert ours.dim == shape[-1]


def test_seeded_weights_are_the_same_everywhere_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = vit_tiny_patch16_224(seed=1), vit_tiny_patch16_224(seed=1), vit_tiny_patch16_224(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.cls_token, other.cls_token)


def test_another_tile_size_is_refused(tiles):
    with pytest.raises(ConfigError, match=r"tiles.size: the encoder takes 3 x 224 x 224 px, got 3 x 200 x 200"):
        vit_tiny_patch16_224()(tiles[:, :, :200, :200])


def test_fixed_positions_tell_rows_from_columns_and_patches_from_class_token():
    table = vit_tiny_patch16_224(position="sincos").pos_embed[0]
    assert (table[0] == 0).all()
    places = table[1:].view(14, 14, 192)
    assert torch.equal(places[3, 5, :96], places[5, 3, 96:])
    assert len(torch.unique(places.flatten(0, 1), dim=0)) == 196


def test_a_checkpoint_that_normalises_after_averaging_is_refused():
    ours = vit_tiny_patch16_224(output="mean")
    state = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value for key, value in ours.state_dict().items()}
    with pytest.raises(ConfigError, match=r"2 keys missing: norm.weight, norm.bias. 2 keys unexpected: fc_norm.weight, fc_norm.bias"):
        apply_weights(ours, state, "fc.pth")
