"""Heads in folders and repositories of the hub: a `config.json`, and safetensors or ONNX beside it. No code in them is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tilestream.config.heads import Head
from tilestream.encoders.heads.dense import load_semantic, load_smp
from tilestream.encoders.heads.libraries import load_timm, load_transformers
from tilestream.encoders.heads.loaded import HeadFolder, LoadedHead
from tilestream.encoders.heads.three_branch import load_three_branch
from tilestream.encoders.heads.wsinfer import load_wsinfer
from tilestream.encoders.hub import fetch_file, fetch_weights
from tilestream.errors import ConfigError, InputError

CONFIG = "config.json"

_BESIDE = ("preprocessor_config.json", "model.onnx")
"""Files of a repository that are fetched where there are any."""

Loader = Callable[[HeadFolder], LoadedHead]

LOADERS: tuple[tuple[frozenset[str], Loader], ...] = (
    (frozenset({"patch_size_pixels", "class_names"}), load_wsinfer),
    (frozenset({"architecture", "pretrained_cfg"}), load_timm),
    (frozenset({"model_type", "architectures"}), load_transformers),
    (frozenset({"detector", "classes"}), load_three_branch),
    (frozenset({"_model_class"}), load_smp),
)
"""Keys of a `config.json` by which each is known, and who loads it, the first that fits."""


def load_folder(folder: Path, head: Head, name: str, weights: Path | None = None) -> LoadedHead:
    """A head of a folder with a `config.json`; `weights` is its file, where one is named.

    Raises
    ------
    ConfigError
        The model is of no library that is known here, or its library is not installed.
    InputError
        Its files are missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"heads.{name}.model: {folder} has no {CONFIG} that can be read ({error}). Give a folder with one.") from error
    keys = set(config) if isinstance(config, dict) else set()
    loader = next((loader for known, loader in LOADERS if known <= keys), None)
    if loader is None:
        known = "; ".join(" and ".join(sorted(keys)) for keys, _ in LOADERS)
        raise ConfigError(
            f"heads.{name}.model: {folder / CONFIG} is of no library that is known here: it has {', '.join(sorted(keys)[:6])}, but one of these is looked "
            f"for: {known}. Wrap the model in a module:factory."
        )
    if loader is load_transformers and head.kind == "segment":
        loader = load_semantic
    return loader(HeadFolder(folder, config, head, name, weights))


def fetch_folder(address: str, name: str) -> Path:
    """The files of `owner/name` or `owner/name@revision` that a head needs, in one folder of the hub's cache."""
    repository, _, revision = address.partition("@")
    way = f"or fetch the repository on another machine and set heads.{name}.model to its folder"
    try:
        found = fetch_file(repository, CONFIG, revision or None, way=way)
    except FileNotFoundError as error:
        raise InputError(f"heads.{name}.model: {address} has no {CONFIG}. Name a repository that has one.") from error
    there = []
    for other in _BESIDE:
        try:
            there.append(fetch_file(repository, other, revision or None, way=way).name)
        except FileNotFoundError:
            continue
    if "model.onnx" not in there:
        fetch_weights(address)
    return found.parent
