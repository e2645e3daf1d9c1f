"""A head by the address that a config gives, whatever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tilestream.config.heads import Head
from tilestream.encoders.heads.address import PROGRAM, box_names, boxed, is_factory
from tilestream.encoders.heads.factory import load_factory
from tilestream.encoders.heads.folders import CONFIG, fetch_folder, load_folder
from tilestream.encoders.heads.head_file import TASKS, read_about, read_head
from tilestream.encoders.heads.instanseg import load_instanseg
from tilestream.encoders.heads.loaded import LoadedHead
from tilestream.encoders.heads.onnx import load_onnx
from tilestream.encoders.hub import is_hub_id
from tilestream.encoders.weights import module_digest, weights_digest
from tilestream.errors import ConfigError, InputError
from tilestream.models.heads.bags import Bag
from tilestream.store.heads.columns import NOT_COMPUTED


def load_head(head: Head, name: str) -> LoadedHead:
    """Load a head, and see that it is of the kind that the config says.

    Parameters
    ----------
    head : Head
        As the config has it.
    name : str
        Its name there, for errors.

    Raises
    ------
    ConfigError
        The model is of another kind, reads something else, or its classes are not known or of another number.
    InputError
        Its files cannot be read.
    """
    loaded = _load(head, name)
    for what, wanted, own in (("kind", head.kind, loaded.kind), ("input", head.input, loaded.input)):
        if own is not None and own != wanted:
            raise ConfigError(
                f"heads.{name}.{what}: {wanted}, but {head.model} is a head of {what} {own}. Set it to {own}, or give another model."
            )
    return _with_classes(replace(loaded, task="detection") if head.kind == "detect" else loaded, head, name)


def _load(head: Head, name: str) -> LoadedHead:
    if head.model.startswith(PROGRAM) or is_factory(head.model):
        return load_instanseg(head.model, name) if head.model.startswith(PROGRAM) else _made(load_factory(head.model, name), name)
    if is_hub_id(head.model):
        return load_folder(fetch_folder(head.model, name), head, name)
    path = boxed(head.model) or Path(head.model)
    if not path.exists():
        raise InputError(
            f"heads.{name}.model: {head.model} does not exist. Give a head's file or folder, a repository of the hub, module:factory, or one of the package: "
            f"{', '.join(box_names())}."
        )
    if path.is_dir():
        return load_folder(path, head, name)
    if path.suffix == ".onnx":
        return load_folder(path.parent, head, name, path) if (path.parent / CONFIG).is_file() else load_onnx(path, head, name)
    if path.suffix == ".safetensors" and (about := read_about(path)) is not None:
        module, _ = read_head(path)
        digest = weights_digest(module)
        notes = (about.notes,) if about.notes else ()
        return LoadedHead(
            module,
            about.task,
            about.classes,
            digest,
            about.fitted,
            about.kind,
            about.input,
            about.dim,
            mpp=getattr(module, "mpp", None),
            notes=notes,
        )
    if path.suffix == ".safetensors" and (path.parent / CONFIG).is_file():
        return load_folder(path.parent, head, name, path)
    raise ConfigError(
        f"heads.{name}.model: {head.model} is neither a head of tilestream fit nor a model with a {CONFIG} beside it. "
        "Give a .safetensors of tilestream fit, a folder with config.json and safetensors, an .onnx file, or module:factory. "
        f"TorchScript programs run code of whoever made them: only those of InstanSeg are run, and only as {PROGRAM}FILE.pt."
    )


def _made(module: nn.Module, name: str) -> LoadedHead:
    """A head that a factory made, with what it says of itself."""
    stated: dict[str, Any] = {key: getattr(module, key, None) for key in ("size", "mpp", "overlap")}
    task = str(getattr(module, "task", "regression" if getattr(module, "regression", False) else "classification"))
    if task not in TASKS:
        raise ConfigError(f"heads.{name}.model: its task is {task!r}, but it must be one of {', '.join(TASKS)}.")
    return LoadedHead(
        module, task, tuple(map(str, getattr(module, "classes", ()))), module_digest(module), **stated, stride=int(getattr(module, "stride", 1)),
        context=int(getattr(module, "context", 0)),
        dim=getattr(module, "dim", None), streams=isinstance(module, Bag), untrained=bool(getattr(module, "untrained", False)),
    )  # fmt: skip


def _with_classes(loaded: LoadedHead, head: Head, name: str) -> LoadedHead:
    """The names of the classes: the config's where it gives any, else the model's."""
    classes = head.classes or loaded.classes
    if loaded.classes and head.classes and len(head.classes) != len(loaded.classes):
        raise ConfigError(
            f"heads.{name}.classes: {len(head.classes)} names, but {head.model} has {len(loaded.classes)} classes "
            f"({', '.join(loaded.classes[:5])}). Give as many, or leave them out."
        )
    if NOT_COMPUTED in classes:
        raise ConfigError(f"heads.{name}.classes: {NOT_COMPUTED!r} is what tiles without an answer get. Name the class otherwise.")
    if twice := next((each for k, each in enumerate(classes) if each in classes[:k]), None):
        raise ConfigError(
            f"heads.{name}.classes: {head.model} has two classes {twice!r}, which no reader could tell apart. Name all {len(classes)} here."
        )
    return replace(loaded, classes=classes)
