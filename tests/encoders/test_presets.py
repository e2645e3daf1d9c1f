"""Presets on our vision transformer give the features of the implementations that their authors use."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.random_models import normalised, relative_error, through_pillow, tissue
from tests.support.torchvision_ops import declare_missing_operators
from tilestream.encoders.catalogue import EncoderSpec, known_encoders
from tilestream.encoders.preset_encoders import build_preset, preset_state, preset_vit
from tilestream.encoders.presets import PRESETS
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError, InputError
from tilestream.models.vit import resize_tiles

VITS = {name: preset for name, preset in PRESETS.items() if preset.vit and name != "keep" and not preset.asked and not preset.bands}
HUGGING = {
    "phikon",
    "phikon-v2",
    "hibou-b",
    "hibou-l",
    "midnight-12k",
    "dinov2-s",
    "dinov2-b",
    "dinov2-l",
    "dinov2-g",
    "phaet",
    "mascaret",
    "dinov3-s",
    "dinov3-b",
    "dinov3-l",
    "dinov3-l-sat",
}
DEPTH = 2


@pytest.fixture(scope="module")
def tiles():
    """(2, 3, 256, 256) uint8 of made tissue."""
    return tissue(256)


def timm_reference(shape, side):
    declare_missing_operators()
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    options = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if shape.gated else {}
    if shape.hidden:
        options["mlp_ratio"] = (shape.hidden + 0.01) / shape.dim
    return VisionTransformer(
        img_size=side * shape.patch, patch_size=shape.patch, embed_dim=shape.dim, depth=DEPTH, num_heads=shape.heads, num_classes=0,
        init_values=shape.layer_scale, reg_tokens=shape.registers, no_embed_class=not shape.embed_prefix, global_pool="", dynamic_img_size=True, **options,
    )  # fmt: skip


def hugging_reference(shape, side):
    declare_missing_operators()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    common = {
        "hidden_size": shape.dim, "num_hidden_layers": DEPTH, "num_attention_heads": shape.heads, "image_size": side * shape.patch, "patch_size": shape.patch,
        "layer_norm_eps": shape.eps,
    }  # fmt: skip
    if shape.position == "rope":
        return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4, intermediate_size=4 * shape.dim, **common))
    if shape.layer_scale is None:
        return transformers.ViTModel(transformers.ViTConfig(intermediate_size=4 * shape.dim, **common), add_pooling_layer=False)
    if shape.registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=shape.registers, use_swiglu_ffn=shape.gated, **common)
        return transformers.Dinov2WithRegistersModel(config)
    return transformers.Dinov2Model(transformers.Dinov2Config(use_swiglu_ffn=shape.gated, **common))


def features(tokens, shape):
    first, mean = tokens[:, 0], tokens[:, 1 + shape.registers :].mean(dim=1)
    found = {"class": first, "mean": mean, "class+mean": torch.cat([first, mean], dim=1)}[shape.output]
    return found / found.norm(dim=1, keepdim=True) if shape.unit_norm else found


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            spread = 0.02 if parameter.ndim > 1 else 0.2
            parameter.normal_(0, spread, generator=generator)
            if parameter.ndim == 1 and not name.endswith("bias"):
                parameter.add_(1)
    return model.eval()


def heavy(name):
    """Presets whose layers take seconds to fill; others of the same kind stay in the quick run."""
    return (VITS[name].vit["dim"] >= 1024 and name not in {"uni", "kaiko-vitl14"}) or name in {
        "dinov3-b",
        "kaiko-vitb8",
        "hibou-b",
        "dinov2-b",
    }


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if heavy(name) else name for name in VITS])
def test_a_preset_gives_its_references_features_from_the_same_weights(name, tiles):
    preset = VITS[name]
    ours = preset_vit(preset, depth=DEPTH)
    shape = ours.config
    side = preset.weights_side or shape.side
    theirs = randomised((hugging_reference if name in HUGGING else timm_reference)(shape, side))
    ours.load_state_dict(preset_state(preset, ours, theirs.state_dict()))
    pixels = tissue(shape.tile) if shape.tile else tiles[..., :224, :224]
    seen = pixels
    if shape.tile:
        modes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        seen = through_pillow(pixels, shape.resize or shape.img_size, 224, modes[shape.interpolation])
    with torch.inference_mode():
        given = normalised(seen, *preset.pixels)
        tokens = (
            theirs(pixel_values=given, **({"interpolate_pos_encoding": True} if shape.layer_scale is None else {})).last_hidden_state
            if name in HUGGING
            else theirs(given)
        )
        expected, found = features(tokens, shape), ours(pixels)
        assert found.shape == (2, ours.dim)
        assert relative_error(found, expected) < (1e-4 if shape.tile else 1e-5)  # a grey level of rounding where tiles are resized
        assert torch.equal(found, ours(pixels))
        half = ours.to(torch.bfloat16)(pixels).float()
    assert torch.cosine_similarity(half, expected, dim=1).min() > 0.999


def test_names_of_dinov2s_own_code_are_understood(tmp_path):
    preset = VITS["gpfm"]
    native = {}
    for key, value in randomised(preset_vit(preset, depth=DEPTH)).state_dict().items():
        native["teacher.backbone." + re.sub(r"^blocks\.(\d)", r"blocks.0.\1", key)] = value
    table = native["teacher.backbone.pos_embed"]
    native["teacher.backbone.pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    native["teacher.backbone.mask_token"] = torch.zeros(1, 1024)
    native |= {key.replace("teacher", "student"): torch.zeros_like(value) for key, value in native.items()}
    torch.save({"model": native}, tmp_path / "gpfm.pth")
    ours = build_preset(preset, str(tmp_path / "gpfm.pth"), depth=DEPTH)
    assert torch.equal(ours.pos_embed, table)
    assert ours.notes == [
        "weights are model of gpfm.pth",
        f"took 'teacher.backbone.' off {len(native) // 2} names; left out {len(native) // 2} others (student)",
    ]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tiles_are_resized_as_pillow_does_it(tiles, interpolation):
    mode = getattr(Image.Resampling, interpolation.upper())
    expected = np.stack([np.asarray(Image.fromarray(t.permute(1, 2, 0).numpy()).resize((224, 224), mode)) for t in tiles])
    found = resize_tiles(tiles, 224, 224, interpolation).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    on_device = resize_tiles(tiles.to("meta"), 224, 224, interpolation)
    assert on_device.shape == (2, 3, 224, 224)


def test_keep_gives_the_projected_class_token_of_unit_length(tmp_path, tiles):
    preset = PRESETS["keep"]
    visual = randomised(timm_reference(preset_vit(preset, depth=DEPTH).config, 14))
    head = randomised(torch.nn.Sequential(torch.nn.Linear(1024, 768), torch.nn.GELU(), torch.nn.Linear(768, 768)))
    state = {f"visual.{key.replace('.gamma', '.weight')}": value for key, value in visual.state_dict().items()}
    state |= {f"visual_head.{key}": value for key, value in head.state_dict().items()} | {
        "text.pooler.bias": torch.zeros(3),
        "logit_scale": torch.ones(()),
    }
    torch.save(state, tmp_path / "keep.bin")
    ours = build_preset(preset, str(tmp_path / "keep.bin"), depth=DEPTH)
    pixels = tiles[..., :224, :224]
    with torch.inference_mode():
        expected = head(visual(normalised(pixels, *preset.pixels))[:, 0])
        assert relative_error(ours(pixels), expected / expected.norm(dim=1, keepdim=True)) < 1e-5
    assert (ours.dim, ours.mpp, ours.vector) == (768, None, "projection of the class token, of unit length")
    assert ours.notes == [f"took 'visual.' off {len(state) - 2} names; left out 2 others (logit_scale, text)"]


def test_dinov3s_own_file_has_no_bias_for_keys_whatever_it_holds(tmp_path, tiles):
    preset = VITS["dinov3-s"]
    wanted = randomised(preset_vit(preset, depth=1))
    with torch.no_grad():
        wanted.blocks[0].attn.qkv.bias[384:768] = 0
    state = {key.replace("reg_token", "storage_tokens"): value.clone() for key, value in wanted.state_dict().items()}
    state["blocks.0.attn.qkv.bias"][384:768] = 7
    state |= {"blocks.0.attn.qkv.bias_mask": torch.ones(1152), "rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov3.pth")
    ours = build_preset(preset, str(tmp_path / "dinov3.pth"), depth=1)
    with torch.inference_mode():
        assert torch.equal(ours(tiles[..., :224, :224]), wanted(tiles[..., :224, :224]))


def test_the_table_has_a_row_for_each_preset_with_facts():
    rows = {entry.name: entry for entry in known_encoders()}
    assert set(PRESETS) <= set(rows)
    for name, preset in PRESETS.items():
        entry = rows[name]
        assert all([entry.dim, entry.tile_size, entry.output, entry.precision, entry.licence, entry.normalisation]), name
        assert preset.repository.split("/")[1] in entry.source
    assert (rows["keep"].output, rows["midnight-12k"].mpp_range) == ("projection of the class token, of unit length", (0.25, 2.0))
    assert (rows["virchow2"].dim, rows["uni"].tile_size, rows["gigapath"].interpolation) == (2560, 256, "bicubic")


def test_a_model_that_needs_its_authors_code_says_so():
    with pytest.raises(ConfigError, match=r"conch is no plain vision transformer .* module:factory"):
        build_encoder(EncoderSpec("conch"))


def test_weights_of_another_preset_are_refused(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(preset_vit(VITS["kaiko-vits16"], depth=12).state_dict(), path)
    with pytest.raises(ConfigError, match=r"encoder\.weights: .*small\.pth does not fit the model"):
        build_encoder(EncoderSpec("kaiko-vitb16", weights=str(path)))


def test_a_preset_from_a_file_needs_no_network(tmp_path, tiles):
    path = tmp_path / "small.pth"
    torch.save(randomised(preset_vit(VITS["kaiko-vits16"])).state_dict(), path)
    encoder = build_encoder(EncoderSpec("kaiko-vits16", weights=str(path), args={"output": "class+mean"}))
    assert (encoder.dim, encoder.mpp, encoder.tile_size) == (768, 0.5, 224)
    assert encoder(tiles[..., :224, :224]).shape == (2, 768)


def test_offline_the_way_out_is_said(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for spec in (EncoderSpec("uni"), EncoderSpec("vit_tiny_patch16_224", weights="owner/name")):
        with pytest.raises(InputError, match=r"(?s)(MahmoodLab/UNI|owner/name).*(cache|offline|OFFLINE).*encoder\.weights"):
            build_encoder(spec)


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_hub_out_of_reach_is_asked_once_and_told_without_the_librarys_lines(monkeypatch, tmp_path, caplog, proxy):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    hub.close_session()  # a session keeps the proxy that it began with
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that nobody listens on
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s to ask again"))
    with pytest.raises(InputError, match=r"MahmoodLab/UNI: .* not in the cache .* does not answer \(.*Go online once .* encoder\.weights"):
        build_encoder(EncoderSpec("uni"))
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]
    hub.close_session()


def test_a_gated_model_names_the_page(monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    import httpx2
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **__):
        raise GatedRepoError("403", response=httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co")))

    for name in ("hf_hub_download", "get_hf_file_metadata"):
        monkeypatch.setattr(hub, name, refuse)
    with pytest.raises(InputError, match=r"MahmoodLab/UNI is gated\. Accept its terms at https://huggingface\.co/MahmoodLab/UNI"):
        build_encoder(EncoderSpec("uni"))


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    for module, spec in (("huggingface_hub", "uni"), ("timm", "timm:resnet18"), ("transformers", "hf:owner/name")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=r"not installed.*pip install 'tilestream\[(hf|timm)\]'"):
            build_encoder(EncoderSpec(spec))
        monkeypatch.delitem(sys.modules, module)
