"""Models that segment, from folders of segmentation_models_pytorch and transformers: uint8 patches in, logits of each pixel out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilestream.encoders.heads.loaded import HeadFolder, LoadedHead
from tilestream.encoders.heads.pixels import PixelClassifier, Preparation
from tilestream.encoders.imported import import_optional
from tilestream.encoders.transformers_encoder import processor_pixels
from tilestream.encoders.weights import apply_weights, read_weights, weights_digest
from tilestream.errors import ConfigError, InputError

SMALLEST_SCORE = 1e-12
"""Below it the score of a class counts as this, so that it has a logarithm."""


class Padded(nn.Module):
    """A dense model of pixels whose sides must be multiples of a number: patches are filled up with white, and what it gives is cut again."""

    def __init__(self, model: nn.Module, multiple: int) -> None:
        super().__init__()
        self.model, self.multiple = model, multiple

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 to (n, outputs, h, w)."""
        height, width = patches.shape[-2:]
        more = (0, -width % self.multiple, 0, -height % self.multiple)
        out: Tensor = self.model(functional.pad(patches, more, value=255) if any(more) else patches)
        return out[..., :height, :width]


def load_smp(found: HeadFolder) -> LoadedHead:
    """A model as segmentation_models_pytorch writes it, normalised as its encoders of ImageNet are.

    Raises
    ------
    ConfigError
        The library is not installed, or cannot make the model.
    InputError
        The weights do not fit.
    """
    library = import_optional("segmentation_models_pytorch", "seg", found.key)
    options = {
        key: value for key, value in found.config.items() if not key.startswith("_") and key not in ("activation", "encoder_weights")
    }
    name = str(found.config["_model_class"])
    try:
        model: nn.Module = getattr(library, name)(**options, encoder_weights=None)
    except (AttributeError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{found.key}: segmentation_models_pytorch cannot make {name!r} with {options} ({error}).") from error
    weights = found.weights or found.path
    apply_weights(model, read_weights(weights)[0], weights, found.key.removesuffix(".model"))
    multiple = int(getattr(model.encoder, "output_stride", 32)) if getattr(model, "requires_divisible_input_shape", True) else 1
    module = Padded(PixelClassifier(model.eval(), Preparation(), _only_masks), multiple).eval()
    note = f"segmentation_models_pytorch {name}: pixels are normalised as for ImageNet, for its config.json does not say how"
    return LoadedHead(module, "classification", (), weights_digest(module), kind="segment", input="pixels", notes=(note,))


def _only_masks(out: Any) -> Tensor:
    """The masks of what a model gives; one that classifies the patch as well gives that behind them."""
    masks: Tensor = out[0] if isinstance(out, tuple) else out
    return masks


def load_semantic(found: HeadFolder) -> LoadedHead:
    """A model of transformers that segments (SegFormer, UperNet, Mask2Former, ...), normalised as its processor says, at the size of its input.

    Raises
    ------
    ConfigError
        transformers is not installed, or knows no such model.
    InputError
        Its files are missing or damaged.
    """
    transformers = import_optional("transformers", "hf", found.key)
    try:
        pixels = json.loads((found.path / "preprocessor_config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{found.key}: {found.path} has no preprocessor_config.json, so how pixels are normalised is not known."
        ) from error
    universal = any("UniversalSegmentation" in name or name.startswith("Mask") for name in found.config["architectures"] or ())
    kind = transformers.AutoModelForUniversalSegmentation if universal else transformers.AutoModelForSemanticSegmentation
    try:
        model, report = kind.from_pretrained(found.path, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    except (ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{found.key}: transformers knows no model that segments for {found.path} ({first}). Wrap it in a module:factory."
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{found.key}: the weights of {found.path} cannot be loaded ({error}).") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{found.key}: {len(missing)} weights are missing in {found.path} ({', '.join(missing[:3])}). Fetch it again.")
    labels = [str(label) for _, label in sorted((int(key), label) for key, label in model.config.id2label.items())]
    preparation = Preparation(*processor_pixels(str(found.path), pixels))
    read: Callable[[Any], Tensor] = _scores_of_queries if universal else lambda out: out.logits
    module = Enlarged(PixelClassifier(model.eval(), preparation, read)).eval()
    return LoadedHead(module, "classification", tuple(labels), weights_digest(module), kind="segment", input="pixels")


class Enlarged(nn.Module):
    """A dense model whose output is brought to the size of its input, bilinearly, as its library does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 to (n, outputs, h, w)."""
        out: Tensor = self.model(patches)
        size = patches.shape[-2:]
        return out if out.shape[-2:] == size else functional.interpolate(out.float(), size=size, mode="bilinear", align_corners=False)


def _scores_of_queries(out: Any) -> Tensor:
    """(n, classes, h, w) logarithms of the scores of classes from queries, each with a class and a mask."""
    classes = out.class_queries_logits.softmax(dim=-1)[..., :-1]  # the last one is no class
    scores = torch.einsum("bqc,bqhw->bchw", classes, out.masks_queries_logits.sigmoid())
    return scores.clamp(min=SMALLEST_SCORE).log()
