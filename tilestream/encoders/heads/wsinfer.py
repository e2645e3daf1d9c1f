"""Patch classifiers with the `config.json` of WSInfer's model zoo, beside ONNX or safetensors; its TorchScript programs are not run."""

from __future__ import annotations

from typing import Any

from torch import nn

from tilestream.encoders.heads.libraries import build_timm
from tilestream.encoders.heads.loaded import HeadFolder, LoadedHead
from tilestream.encoders.heads.onnx import OnnxModule
from tilestream.encoders.heads.pixels import PixelClassifier, Preparation
from tilestream.encoders.weights import weights_digest
from tilestream.errors import ConfigError, InputError
from tilestream.sources.files import file_sha256

_STEPS = {"Resize": {"size", "interpolation", "max_size", "antialias"}, "ToTensor": set(), "Normalize": {"mean", "std", "inplace"}}
"""Steps of a transform, in this order, and their arguments."""


def load_wsinfer(found: HeadFolder) -> LoadedHead:
    """A classifier of the zoo: its patches, its resolution, its transform.

    One logit becomes a probability by the sigmoid, several by the softmax.
    """
    folder, config = found.path, found.config
    classes, outputs = [str(label) for label in config["class_names"]], int(config["num_classes"])
    if len(classes) != outputs:
        raise ConfigError(f"{found.key}: {folder} names {len(classes)} classes for num_classes {outputs}. Correct its config.json.")
    preparation = _preparation(config.get("transform") or [], f"{found.key}: {folder / 'config.json'}")
    model, digest = _model(found)
    module = PixelClassifier(model, preparation)
    if outputs == 1:
        classes = [f"not {classes[0]}", *classes]
    return LoadedHead(
        module, "classification", tuple(classes), digest or weights_digest(module), input="pixels", size=int(config["patch_size_pixels"]),
        mpp=float(config["spacing_um_px"]),
    )  # fmt: skip


def _model(found: HeadFolder) -> tuple[nn.Module, str]:
    """The model, and the digest of its file where its weights cannot be seen."""
    folder, config = found.path, found.config
    files = [found.weights] if found.weights is not None else sorted([*folder.glob("*.onnx"), *folder.glob("*.safetensors")])
    if not files:
        programs = any(folder.glob("*.pt"))
        what = "a TorchScript program only, which would run code that is not looked at" if programs else "no weights"
        raise InputError(f"{found.key}: {folder} has {what}. Export the model to ONNX, and put it there.")
    if len(files) > 1:
        raise InputError(f"{found.key}: {folder} has {len(files)} models ({', '.join(file.name for file in files[:4])}). Name one of them.")
    if files[0].suffix == ".onnx":
        return OnnxModule(files[0], found.key), file_sha256(files[0])
    architecture = config.get("architecture")
    if not architecture:
        raise ConfigError(
            f"{found.key}: {folder} has safetensors, and its config.json does not say which network they are of. "
            "Write architecture into it, the name of a timm model, or export it to ONNX."
        )
    return build_timm(str(architecture), int(config["num_classes"]), {}, files[0], found.key), ""


def _preparation(steps: list[dict[str, Any]], where: str) -> Preparation:
    """What a list of transforms does to a patch."""
    names = [step.get("name") for step in steps]
    if names != sorted(names, key=lambda step: list(_STEPS).index(step) if step in _STEPS else -1) or not set(names) <= set(_STEPS):
        raise ConfigError(f"{where}: its transform is {', '.join(map(str, names))}, but known are {', '.join(_STEPS)}, in this order.")
    given = {step["name"]: dict(step.get("arguments") or {}) for step in steps}
    for step, arguments in given.items():
        if unknown := sorted(arguments.keys() - _STEPS[step]):
            raise ConfigError(f"{where}: {step} has the argument {unknown[0]}, but known are {', '.join(sorted(_STEPS[step])) or 'none'}.")
    normalise, resize = given.get("Normalize"), given.get("Resize")
    mean, std = (tuple(normalise["mean"]), tuple(normalise["std"])) if normalise else ((0.0,) * 3, (1.0,) * 3)
    return Preparation(mean, std, None if resize is None else _side(resize, where), _interpolation(resize, where))


def _side(resize: dict[str, Any], where: str) -> int:
    size = resize["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or resize.get("max_size") is not None:
        raise ConfigError(f"{where}: Resize to {size}, but patches are squares. Give one side.")
    return int(sides.pop())


def _interpolation(resize: dict[str, Any] | None, where: str) -> str:
    mode = str((resize or {}).get("interpolation", "bilinear")).lower().rsplit(".", 1)[-1]
    if mode not in ("bilinear", "bicubic"):
        raise ConfigError(f"{where}: Resize by {mode}, but known are bilinear and bicubic.")
    return mode
