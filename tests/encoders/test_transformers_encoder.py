"""A model of transformers gives what its architecture is known by, and says what that is."""

import json

import pytest
import torch

from tests.support.random_models import library, normalised, randomised, relative_error, save_hugging, tissue
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.errors import ConfigError, InputError

SIDE = 64
VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": SIDE, "patch_size": 16}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
SWIN = {"image_size": SIDE, "patch_size": 4, "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
MEAN, CLASS = "mean of the patch tokens", "class token"


def tokens_of(model, pixels):
    return model(pixel_values=pixels).last_hidden_state


def first(model, pixels):
    return tokens_of(model, pixels)[:, 0]


def mean_from(before):
    return lambda model, pixels: tokens_of(model, pixels)[:, before:].mean(dim=1)


def pooled(model, pixels):
    return model(pixel_values=pixels).pooler_output


def all_patches(model, pixels):
    """Tokens of a masked autoencoder's encoder run on all patches in their order, by its parts."""
    tokens = model.embeddings.patch_embeddings(pixels) + model.embeddings.position_embeddings[:, 1:]
    start = model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]
    tokens = torch.cat([start.expand(len(pixels), -1, -1), tokens], dim=1)
    for layer in model.layers:
        tokens = layer(tokens)
    return model.layernorm(tokens)


def unmasked(model, pixels):
    return all_patches(model, pixels)[:, 0]


def projected(model, pixels):
    return model.get_image_features(pixel_values=pixels).pooler_output


def dual(kind, **options):
    return lambda t: getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(vision_config=VIT, text_config=TEXT, **options))


def single(model, config, **options):
    return lambda t: getattr(t, model)(getattr(t, config)(**{**VIT, **options}))


ROWS = {
    "vit": (single("ViTModel", "ViTConfig"), {}, first, CLASS),
    "deit mean": (single("DeiTModel", "DeiTConfig"), {"output": "mean"}, mean_from(2), MEAN),
    "dinov2": (single("Dinov2Model", "Dinov2Config"), {}, first, CLASS),
    "dinov2 both": (
        single("Dinov2Model", "Dinov2Config"), {"output": "class+mean"},
        lambda model, pixels: torch.cat([first(model, pixels), mean_from(1)(model, pixels)], dim=1), f"{CLASS}, {MEAN}",
    ),
    "dinov2 registers class": (single("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=3), {}, first, CLASS),
    "dinov2 registers": (
        single("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=3), {"output": "mean"}, mean_from(4), MEAN,
    ),
    "dinov3": (single("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2), {"output": "mean"}, mean_from(3), MEAN),
    "dinov3 class": (single("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2), {}, first, CLASS),
    "mae mean": (
        single("ViTMAEModel", "ViTMAEConfig"), {"output": "mean"}, lambda model, pixels: all_patches(model, pixels)[:, 1:].mean(dim=1), MEAN,
    ),
    "mae": (single("ViTMAEModel", "ViTMAEConfig"), {}, unmasked, CLASS),
    "msn": (single("ViTMSNModel", "ViTMSNConfig"), {}, first, CLASS),
    "beit": (single("BeitModel", "BeitConfig"), {}, pooled, "mean of the patch tokens, through the norm behind it"),
    "beit class": (single("BeitModel", "BeitConfig", use_mean_pooling=False), {}, first, CLASS),
    "data2vec": (
        lambda t: t.Data2VecVisionModel(t.Data2VecVisionConfig(**VIT), add_pooling_layer=True), {}, pooled,
        "mean of the patch tokens, through the norm behind it",
    ),
    "ijepa": (single("IJepaModel", "IJepaConfig"), {}, mean_from(0), MEAN),
    "swin": (lambda t: t.SwinModel(t.SwinConfig(**SWIN)), {}, pooled, MEAN),
    "swinv2": (lambda t: t.Swinv2Model(t.Swinv2Config(**SWIN)), {}, pooled, MEAN),
    "siglip vision": (single("SiglipVisionModel", "SiglipVisionConfig"), {}, pooled, "attention pool of the patch tokens"),
    "siglip vision mean": (single("SiglipVisionModel", "SiglipVisionConfig"), {"output": "mean"}, mean_from(0), MEAN),
    "siglip vision of a whole": (dual("Siglip"), {"output": "mean"}, lambda model, pixels: mean_from(0)(model.vision_model, pixels), MEAN),
    "siglip": (dual("Siglip"), {}, projected, "attention pool of the patch tokens"),
    "clip vision": (single("CLIPVisionModel", "CLIPVisionConfig"), {}, pooled, "class token after the last norm"),
    "clip vision projected": (
        single("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=20), {},
        lambda model, pixels: model(pixel_values=pixels).image_embeds, "projection of the class token after the last norm, not scaled to unit length",
    ),
    "clip": (dual("CLIP", projection_dim=20), {}, projected, "projection of the class token after the last norm, not scaled to unit length"),
    "clip class": (
        dual("CLIP", projection_dim=20), {"output": "class"}, lambda model, pixels: model.vision_model(pixel_values=pixels).pooler_output,
        "class token after the last norm",
    ),
    "convnext asked for": (
        lambda t: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], image_size=SIDE)), {"output": "pooled"}, pooled,
        "the model's own pooling (pooler_output)",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiles():
    return tissue(SIDE)


@pytest.mark.parametrize("row", ROWS)
def test_each_architecture_gives_the_vector_it_is_known_by_twice_alike(row, tiles, tmp_path):
    build, args, reference, words = ROWS[row]
    theirs = randomised(build(library("transformers")))
    ours = build_encoder(EncoderSpec(f"hf:{save_hugging(theirs, tmp_path, SIDE)}", args=args))
    with torch.inference_mode():
        expected, found = reference(theirs, normalised(tiles)), ours(tiles)
        assert relative_error(found, expected) < 1e-5
        assert torch.equal(found, ours(tiles))
    assert (ours.dim, ours.tile_size, ours.vector) == (expected.shape[1], SIDE, words)


@pytest.mark.parametrize(
    ("row", "args", "message"),
    [
        ("ijepa", {"output": "class"}, r"encoder\.args\.output: 'class', but .* ijepa, which has no class token\. Set it to mean\."),
        ("siglip", {"output": "class"}, r"siglip, which has no class token\. Set it to mean or pooled"),
        ("swin", {"output": "class+mean"}, "swin, which has no class token"),
        ("vit", {"output": "projected"}, "'projected', but .* gives no such thing"),
        ("vit", {"output": "cls"}, r"encoder\.args\.output: 'cls', but it must be one of class, mean"),
        ("convnext asked for", {}, r"encoder\.args\.output: .* is a convnext, and what its vector is cannot be known here"),
        ("convnext asked for", {"output": "mean"}, "gives no such thing of a picture"),
    ],
)
def test_what_an_architecture_has_not_is_refused(row, args, message, tmp_path):
    folder = save_hugging(randomised(ROWS[row][0](library("transformers"))), tmp_path, SIDE)
    with pytest.raises(ConfigError, match=message):
        build_encoder(EncoderSpec(f"hf:{folder}", args=args))


def test_a_siglip_without_its_pooling_head_is_asked_about(tmp_path, tiles):
    build = single("SiglipVisionModel", "SiglipVisionConfig", vision_use_head=False)
    folder = save_hugging(randomised(build(library("transformers"))), tmp_path, SIDE)
    with pytest.raises(ConfigError, match=r"encoder\.args\.output: .*without the head that pools"):
        build_encoder(EncoderSpec(f"hf:{folder}"))
    assert build_encoder(EncoderSpec(f"hf:{folder}", args={"output": "mean"}))(tiles).shape == (2, 48)


def test_a_half_precision_checkpoint_runs_in_fp32(tmp_path, tiles):
    theirs = randomised(ROWS["vit"][0](library("transformers"))).half()
    ours = build_encoder(EncoderSpec(f"hf:{save_hugging(theirs, tmp_path, SIDE)}"))
    with torch.inference_mode():
        assert relative_error(ours(tiles), first(theirs.float(), normalised(tiles))) < 1e-5


def test_weights_that_are_missing_are_not_drawn(tmp_path):
    library("transformers")
    from safetensors.torch import load_file, save_file

    folder = save_hugging(randomised(ROWS["clip"][0](library("transformers"))), tmp_path, SIDE)
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing \(visual_projection\.weight\)"):
        build_encoder(EncoderSpec(f"hf:{folder}"))


def test_a_weights_file_of_ones_own_takes_the_place_of_the_repositorys(tmp_path, tiles):
    folder = tmp_path / "hub"
    theirs = randomised(ROWS["vit"][0](library("transformers")))
    save_hugging(theirs, folder, SIDE)
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {f"model.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "tuned.ckpt")
    ours = build_encoder(EncoderSpec(f"hf:{folder}", weights=str(tmp_path / "tuned.ckpt")))
    with torch.inference_mode():
        assert relative_error(ours(tiles), first(theirs, normalised(tiles))) < 1e-5


@pytest.mark.parametrize("processor", [{"rescale_factor": 1 / 127.5}, {"do_normalize": False}])
def test_the_processors_arithmetic_is_kept(processor, tmp_path, tiles):
    theirs = randomised(ROWS["vit"][0](library("transformers")))
    ours = build_encoder(EncoderSpec(f"hf:{save_hugging(theirs, tmp_path, SIDE, **processor)}"))
    scaled = tiles.float() * processor.get("rescale_factor", 1 / 255)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    pixels = scaled if processor.get("do_normalize") is False else (scaled - mean) / std
    with torch.inference_mode():
        assert relative_error(ours(tiles), first(theirs, pixels)) < 1e-5


def test_an_unknown_normalisation_is_not_guessed(tmp_path):
    folder = save_hugging(ROWS["vit"][0](library("transformers")), tmp_path, SIDE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": SIDE}))
    with pytest.raises(InputError, match=r"preprocessor_config\.json has no image_mean"):
        build_encoder(EncoderSpec(f"hf:{folder}"))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    library("transformers")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        build_encoder(EncoderSpec(f"hf:{tmp_path}"))


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "none"])
def test_a_folder_that_does_not_exist_is_named(name):
    library("transformers")
    with pytest.raises(InputError, match=rf"hf:{name}: there is no such folder, and a repository of the hub is owner/name"):
        build_encoder(EncoderSpec(f"hf:{name}"))


def test_a_model_of_text_is_refused(tmp_path):
    t = library("transformers")
    options = {**TEXT, "num_hidden_layers": 1}
    folder = save_hugging(randomised(t.BertModel(t.BertConfig(**options))), tmp_path, SIDE)
    with pytest.raises(ConfigError, match=r"is a bert, which cannot be given a picture alone .*module:factory"):
        build_encoder(EncoderSpec(f"hf:{folder}", args={"output": "class"}))


def test_a_model_of_bands_takes_their_values_as_they_are(tmp_path):
    theirs = randomised(single("ViTModel", "ViTConfig", num_channels=6)(library("transformers")))
    ours = build_encoder(EncoderSpec(f"hf:{save_hugging(theirs, tmp_path / 'vit', SIDE)}", None, {"output": "mean"}))
    tiles = torch.randn(2, 6, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert relative_error(ours(tiles), theirs(pixel_values=tiles).last_hidden_state[:, 1:].mean(dim=1)) < 1e-5
    assert ours.bands == 6
