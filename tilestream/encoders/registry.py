"""Encoders by name: our own, those of installed packages, and `module:factory`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

from torch import nn

from tilestream.encoders.box import tilestream_lite, tilestream_tiny
from tilestream.encoders.catalogue import LITE, TINY, EncoderSpec
from tilestream.encoders.earth.clay import PACKAGE, build_clay
from tilestream.encoders.factories import Factory, check_arguments, find_factory, own_code, refuse_unknown
from tilestream.encoders.hub import fetch_weights, is_hub_id
from tilestream.encoders.preset_encoders import add_notes, build_preset
from tilestream.encoders.presets import PRESETS, Preset
from tilestream.encoders.timm_encoder import TimmEncoder
from tilestream.encoders.transformers_encoder import TransformersEncoder
from tilestream.encoders.weights import apply_weights, read_weights
from tilestream.errors import ConfigError, user_code
from tilestream.models.patch_embed import PatchEmbed, freeze, weights_follow
from tilestream.models.vit import (
    vit_base_patch16_224,
    vit_large_patch16_224,
    vit_small_patch16_224,
    vit_tiny_patch16_224,
)
from tilestream.models.vit_config import ViTConfig
from tilestream.sources.files import look_at

_BUILT_IN: dict[str, Factory] = {
    "patch_embed": PatchEmbed,
    "vit_tiny_patch16_224": vit_tiny_patch16_224,
    "vit_small_patch16_224": vit_small_patch16_224,
    "vit_base_patch16_224": vit_base_patch16_224,
    "vit_large_patch16_224": vit_large_patch16_224,
}
_VIT_ARGS = frozenset(f.name for f in fields(ViTConfig)) - {"dim", "depth", "heads", "patch", "seed"}
_PATCH_ARGS = frozenset({"dim", "patch"})
_BOX: dict[str, tuple[Factory, frozenset[str]]] = {LITE: (tilestream_lite, frozenset({"output"})), TINY: (tilestream_tiny, _VIT_ARGS)}
"""Encoders of the box, whose factories take `weights`, and their arguments."""


def build_encoder(spec: EncoderSpec) -> nn.Module:
    """Build an encoder, load its weights and freeze it.

    Parameters
    ----------
    spec : EncoderSpec
        Name, weights and arguments.

    Returns
    -------
    encoder : nn.Module
        In eval mode without gradients, on the CPU if the factory leaves it there. Takes (n, 3, size, size) uint8 on its device and
        returns (n, dim), or (n, k * k, dim) for tokens; `dim` is an attribute. `notes`, where there are any, say what was done to its
        weights and its pixels, and `vector` what a tile becomes.

    Raises
    ------
    ConfigError
        Where the name is unknown, `encoder.args` do not fit the factory, what it returns is not an encoder, or the weights do not fit.
    InputError
        Where the weights file cannot be read.
    """
    if spec.name in PRESETS:
        return _build_preset(spec, PRESETS[spec.name])
    if spec.name in _BOX:
        factory, known = _BOX[spec.name]
        refuse_unknown(spec.name, spec.args, known)
        boxed: nn.Module = factory(None if spec.weights is None else weights_file(spec.weights), **spec.args)
        return boxed
    encoder = _call_factory(spec)
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"encoder.name: {spec.name!r} returned a {type(encoder).__name__}, but it must return a torch.nn.Module.")
    dim = getattr(encoder, "dim", None)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ConfigError(f"encoder.name: the module of {spec.name!r} has dim = {dim!r}, but dim must be its number of features, an int.")
    if spec.weights is not None:
        target = encoder.model if isinstance(encoder, TimmEncoder | TransformersEncoder) else encoder
        state, notes = read_weights(weights_file(spec.weights))
        add_notes(encoder, [*notes, *apply_weights(target, state, spec.weights)])
        encoder.untrained = False  # type: ignore[assignment]
    freeze(encoder)
    return encoder


def weights_file(weights: str) -> str:
    """The path of a config's `weights`: a file or folder of this machine, or one fetched from the hub."""
    return str(fetch_weights(weights)) if is_hub_id(weights) else weights


def _build_preset(spec: EncoderSpec, preset: Preset) -> nn.Module:
    """A preset with its authors' weights, from a file where one is given, else from the hub."""
    if preset.through == "module:factory":
        raise ConfigError(
            f"encoder.name: {preset.name} is no plain vision transformer and needs its authors' code, which is not part of this package. "
            f"Write a function that builds it ({preset.page}) and set encoder.name to module:factory."
        )
    if preset.through == PACKAGE:
        refuse_unknown(spec.name, spec.args, frozenset({"sensor", "bands", "gsd", "output"}))
        return build_clay(preset, None if spec.weights is None else weights_file(spec.weights), **spec.args)
    if preset.vit is None:
        encoder = build_encoder(EncoderSpec(preset.through, spec.weights, {**preset.arguments, **spec.args}))
        encoder.mpp = preset.mpp  # type: ignore[assignment]
        return encoder
    refuse_unknown(spec.name, spec.args, frozenset({"output", *preset.asked}))
    return build_preset(preset, None if spec.weights is None else weights_file(spec.weights), **spec.args)


def random_weights(spec: EncoderSpec, encoder: nn.Module) -> bool:
    """Whether the weights are untrained, which a run must announce.

    True for our encoders without a weights file; another encoder says so itself, with an attribute `untrained = True`.
    """
    if spec.weights is not None:
        return False
    return spec.name in _BUILT_IN or bool(getattr(encoder, "untrained", False))


def files_of(spec: EncoderSpec) -> object:
    """What is equal as long as an encoder that is built again would be the same one: its files are as they were, and no code of others is asked."""
    if is_others(spec.name):
        return object()
    given = (spec.weights, *spec.args.values())
    return [look_at(path) for path in given if isinstance(path, str)]


def is_others(name: str) -> bool:
    """Whether an encoder of this name is made by code of others."""
    return own_code(name, _BUILT_IN.keys() | _BOX.keys() | PRESETS.keys())


def _call_factory(spec: EncoderSpec) -> Any:
    if spec.name in _BUILT_IN:
        refuse_unknown(spec.name, spec.args, _PATCH_ARGS if spec.name == "patch_embed" else _VIT_ARGS)
        with nullcontext() if spec.weights is None else weights_follow():
            return _BUILT_IN[spec.name](**spec.args)
    kind, _, model = spec.name.partition(":")
    if kind == "timm":
        return TimmEncoder(model, pretrained=spec.weights is None, **spec.args)
    if kind == "hf":
        refuse_unknown(spec.name, spec.args, frozenset({"output"}))
        return TransformersEncoder(model, pretrained=spec.weights is None, **spec.args)
    factory = find_factory(spec.name, [*_BOX, *_BUILT_IN, *PRESETS])
    check_arguments(spec.name, spec.args, factory)
    with user_code(f"encoder.name: {spec.name}", "building the encoder"):
        return factory(**spec.args)


def load_encoder(name: str, weights: str | os.PathLike[str] | None = None, **args: Any) -> nn.Module:
    """Build an encoder and load its weights.

    Parameters
    ----------
    name : str
        As `encoder.name` in a config: one of `tilestream encoders`, `timm:<model>`, `hf:<repository>`, `module:factory`.
    weights : str or path, optional
        A weights file, or a repository of the Hugging Face hub; the encoder's own where it is not given.
    **args
        Passed to the factory.

    Returns
    -------
    encoder : nn.Module
        On the CPU in eval mode, without gradients. Takes (n, 3, size, size) uint8 and returns (n, dim); `.dim` is an attribute.

    Raises
    ------
    ConfigError
        The name is unknown, or arguments or weights do not fit it.
    InputError
        The weights cannot be read or fetched.
    """
    return build_encoder(EncoderSpec(name, None if weights is None else os.fspath(weights), args))
