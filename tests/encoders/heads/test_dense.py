"""Models that segment, from folders of their libraries: what comes out is what the library's own forward gives."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from tests.support.torchvision_ops import declare_missing_operators
from tilestream.config.heads import Head
from tilestream.encoders.heads.load import load_head
from tilestream.errors import ConfigError
from tilestream.models.heads.reach import measure_reach

declare_missing_operators()
smp = pytest.importorskip("segmentation_models_pytorch")
transformers = pytest.importorskip("transformers")

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PATCHES = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(patches):
    return ((patches.float() / 255).permute(0, 2, 3, 1) - MEAN).div(STD).permute(0, 3, 1, 2)


def write_smp(folder, name="Unet", **options):
    torch.manual_seed(0)
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=3, **options).eval()
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"_model_class": name, "encoder_name": "resnet18", "encoder_weights": "imagenet", "classes": 3, **options})
    )
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def loaded(folder, **told):
    return load_head(Head(kind="segment", model=str(folder), **told), "kinds")


@pytest.mark.parametrize(
    ("name", "options"),
    [("Unet", {"decoder_channels": [32, 16, 16, 8, 8]}), ("FPN", {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32})],
)
@torch.inference_mode()
def test_smp_models_give_what_their_library_gives(tmp_path, name, options):
    model = write_smp(tmp_path / "m", name, **options)
    head = loaded(tmp_path / "m", classes=("a", "b", "c"))
    assert torch.allclose(head.module(PATCHES), model(normalised(PATCHES)), atol=1e-5)
    part = PATCHES[..., :80, :70]
    given = functional.pad(part, (0, 26, 0, 16), value=255) if model.requires_divisible_input_shape else part
    assert torch.allclose(head.module(part), model(normalised(given))[..., :80, :70], atol=1e-5)
    assert measure_reach(head.module, 96).margin is None  # it sees the whole patch


def test_weights_that_do_not_fit_are_refused(tmp_path):
    write_smp(tmp_path / "m", decoder_channels=[32, 16, 16, 8, 8])
    (tmp_path / "m" / "config.json").write_text(json.dumps({"_model_class": "Unet", "encoder_name": "resnet18", "classes": 5}))
    with pytest.raises(ConfigError, match=r"heads.kinds.weights: .* does not fit the model"):
        loaded(tmp_path / "m")


def write_transformers(folder, model):
    model.eval().save_pretrained(folder)
    processor = {"image_mean": MEAN.tolist(), "image_std": STD.tolist(), "size": {"height": 96, "width": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@torch.inference_mode()
def test_segformer_gives_what_its_library_gives(tmp_path):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, num_labels=3,
        id2label={0: "fat", 1: "stroma", 2: "gland"}, label2id={"fat": 0, "stroma": 1, "gland": 2},
    )  # fmt: skip
    model = write_transformers(tmp_path / "m", transformers.SegformerForSemanticSegmentation(config))
    head = loaded(tmp_path / "m")
    expected = functional.interpolate(model(normalised(PATCHES)).logits, size=(96, 96), mode="bilinear", align_corners=False)
    assert torch.allclose(head.module(PATCHES), expected, atol=1e-5)
    assert head.classes == ("fat", "stroma", "gland")


@torch.inference_mode()
def test_mask2former_gives_the_semantic_map_of_its_library(tmp_path):
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=3,
        image_size=96,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=7, num_labels=3,
    )  # fmt: skip
    model = write_transformers(tmp_path / "m", transformers.Mask2FormerForUniversalSegmentation(config))
    head = loaded(tmp_path / "m")
    processor = transformers.Mask2FormerImageProcessorPil()
    maps = processor.post_process_semantic_segmentation(model(normalised(PATCHES)), target_sizes=[(96, 96)] * 2)
    found = head.module(PATCHES).argmax(1)
    same = np.mean([np.mean((a == b).numpy()) for a, b in zip(found, maps, strict=True)])
    assert same > 0.98  # the library enlarges masks to 384 px on the way, and its map by nearest pixels
