"""Dense models of segmentation_models_pytorch and transformers with random weights, whose logits are stored as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.torchvision_ops import declare_missing_operators

CLASSES = 4


class Values(nn.Module):
    """The logits of a model at the size of its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.classes = [f"class{k}" for k in range(CLASSES)]
        self.regression = True

    def forward(self, pixels: Tensor) -> Tensor:
        out: Any = self.model(pixels.float() / 127.5 - 1)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)


def smp_unet() -> nn.Module:
    """A Unet of ResNet-18."""
    declare_missing_operators()
    library = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    return Values(library.Unet("resnet18", encoder_weights=None, classes=CLASSES, decoder_channels=[64, 32, 16, 16, 8])).eval()


def segformer() -> nn.Module:
    """A SegFormer: attention over all of a patch in every block."""
    declare_missing_operators()
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.SegformerConfig(
        hidden_sizes=[16, 32, 40, 64], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32,
        num_labels=CLASSES, initializer_range=0.2,
    )  # fmt: skip
    return Values(library.SegformerForSemanticSegmentation(config)).eval()
