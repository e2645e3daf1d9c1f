"""Classifiers that timm and transformers build, from a folder with their `config.json` and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilestream.encoders.heads.loaded import HeadFolder, LoadedHead
from tilestream.encoders.heads.pixels import PixelClassifier, Preparation
from tilestream.encoders.imported import import_optional
from tilestream.encoders.transformers_encoder import processor_pixels, processor_side
from tilestream.encoders.weights import apply_weights, read_weights, weights_digest
from tilestream.errors import ConfigError, InputError


def build_timm(architecture: str, outputs: int, options: dict[str, Any], weights: Path, key: str) -> nn.Module:
    """A timm model with its classifier and the weights of a file, all of them."""
    timm = import_optional("timm", "timm", key)
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=outputs, **options)
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:
        raise ConfigError(f"{key}: timm cannot make {architecture!r} with {options or 'no arguments'} ({error}).") from error
    apply_weights(model, read_weights(weights)[0], weights, key.removesuffix(".model"))
    return model.eval()


def load_timm(found: HeadFolder) -> LoadedHead:
    """A classifier as timm writes it: fed whole at its own size, normalised as its configuration says."""
    folder, config, head = found.path, found.config, found.head
    about = config["pretrained_cfg"]
    outputs = int(config.get("num_classes") or about.get("num_classes") or 0)
    if not outputs:
        raise ConfigError(f"{found.key}: {folder} is a timm model without a classifier (num_classes 0). Use it as encoder, or fit a head.")
    options = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
    model = build_timm(config["architecture"], outputs, options, found.weights or folder, found.key)
    labels = config.get("label_names") or about.get("label_names") or ()
    fixed = bool(about.get("fixed_input_size", False))
    size = int(about["input_size"][-1]) if fixed or head.size is None else head.size
    module = PixelClassifier(model, Preparation(tuple(about["mean"]), tuple(about["std"])))
    note = f"timm {config['architecture']}: patches are fed whole, without the crop of its configuration"
    return LoadedHead(module, "classification", tuple(map(str, labels)), weights_digest(module), input="pixels", size=size, notes=(note,))


def load_transformers(found: HeadFolder) -> LoadedHead:
    """A classifier as transformers writes it, normalised as its processor says."""
    folder = found.path
    transformers = import_optional("transformers", "hf", found.key)
    try:
        pixels = json.loads((folder / "preprocessor_config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{found.key}: {folder} has no preprocessor_config.json, so how pixels are normalised is not known.") from error
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{found.key}: transformers knows no image classifier for {folder} ({first}). Wrap it in a module:factory."
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{found.key}: the weights of {folder} cannot be loaded ({error}).") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{found.key}: {len(missing)} weights are missing in {folder} ({', '.join(missing[:3])}). Fetch it again.")
    labels = [str(label) for _, label in sorted((int(key), label) for key, label in model.config.id2label.items())]
    size = processor_side(pixels) or getattr(model.config, "image_size", None)
    problem = getattr(model.config, "problem_type", None)
    if problem == "multi_label_classification":
        raise ConfigError(
            f"{found.key}: {folder} gives several labels at once (problem_type multi_label_classification), but a head gives one class of several. "
            "Wrap it in a module:factory with regression = True for its logits as values."
        )
    regression = problem == "regression"
    module = PixelClassifier(model, Preparation(*processor_pixels(str(folder), pixels)), lambda out: out.logits)
    task = "regression" if regression else "classification"
    return LoadedHead(module, task, tuple(labels), weights_digest(module), input="pixels", size=size)
