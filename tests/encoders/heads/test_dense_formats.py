"""More models that segment: UperNet from a folder, and ONNX exports of the others, beside what their library gives."""

import json

import pytest
import torch
from torch import nn

from tests.encoders.heads.test_dense import MEAN, PATCHES, STD, loaded, normalised, smp, transformers, write_transformers
from tests.encoders.heads.test_pixel_heads import export
from tilestream.config.heads import Head
from tilestream.encoders.heads.load import load_head
from tilestream.models.heads.reach import measure_reach

CLASSES = ("fat", "stroma", "gland")


@torch.inference_mode()
def test_upernet_gives_what_its_library_gives(tmp_path):
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=3, image_size=96, out_features=stages
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=32,
        id2label=dict(enumerate(CLASSES)), label2id={name: k for k, name in enumerate(CLASSES)},
    )  # fmt: skip
    model = write_transformers(tmp_path / "m", transformers.UperNetForSemanticSegmentation(config))
    head = loaded(tmp_path / "m")
    expected = model(normalised(PATCHES)).logits
    assert expected.shape == (2, 3, 96, 96)
    assert torch.allclose(head.module(PATCHES), expected, atol=1e-5)
    assert head.classes == CLASSES


class Logits(nn.Module):
    """The logits alone of a model of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


def unet():
    return smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=[32, 16, 16, 8, 8])


def fpn():
    return smp.FPN("resnet18", encoder_weights=None, classes=3, decoder_pyramid_channels=32, decoder_segmentation_channels=32)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, num_labels=3
    )
    return Logits(transformers.SegformerForSemanticSegmentation(config))


@pytest.mark.parametrize(
    ("made", "stride"),
    [(unet, 1), (fpn, 1), (segformer, 4)],
)
@pytest.mark.slow
def test_onnx_exports_give_what_their_library_gives(tmp_path, made, stride):
    torch.manual_seed(0)
    model = made().eval()
    told = {"classes": CLASSES, "mean": MEAN.tolist(), "std": STD.tolist(), "size": 96}
    export(model, tmp_path / "m.onnx", normalised(PATCHES), **{key: json.dumps(value) for key, value in told.items()})
    head = load_head(Head(kind="segment", model=str(tmp_path / "m.onnx")), "kinds")
    with torch.inference_mode():
        expected = model(normalised(PATCHES))
        found = head.module(PATCHES)
        assert found.shape == (2, 3, 96 // stride, 96 // stride)
        assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
        assert measure_reach(head.module, 96).margin is None  # it sees the whole patch
    assert (head.classes, head.size) == (CLASSES, 96)
