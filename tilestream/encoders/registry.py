"""Encoders by name: our own, those of installed packages, and `module:factory`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tilestream.encoders.adapters import TimmEncoder, TransformersEncoder
from tilestream.encoders.convert import resize_positions, to_our_names
from tilestream.encoders.hub import fetch_file, fetch_weights, is_hub_id
from tilestream.encoders.presets import HALF, IMAGENET, PRESETS, Preset
from tilestream.encoders.weights import apply_weights, load_weights
from tilestream.errors import ConfigError, InputError, user_code
from tilestream.models.patch_embed import PatchEmbed, freeze
from tilestream.models.vit import (
    VisionTransformer,
    ViTConfig,
    vit_base_patch16_224,
    vit_large_patch16_224,
    vit_small_patch16_224,
    vit_tiny_patch16_224,
)

ENTRY_POINT_GROUP = "tilestream.encoders"
"""Group in which an installed package names its encoder factories."""


@dataclass(frozen=True)
class EncoderSpec:
    """What the config says of the encoder."""

    name: str
    """A name of `known_encoders`, `timm:<model>`, `hf:<repository>`, or `module:factory`."""
    weights: str | None = None
    """A weights file, or a repository of the hub; None for the encoder's own, which for our bare ones are random."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the factory."""
    seed: int = 0
    """Of random weights of our own encoders."""


@dataclass(frozen=True)
class EncoderEntry:
    """One row of the table of encoders; None where only building the encoder would tell."""

    name: str
    """As `encoder.name` has it."""
    source: str
    """`tilestream`, or the installed package that brings it."""
    dim: int | None = None
    """Features of a tile or token."""
    tile_size: int | None = None
    """Side of a tile, px; None also for any."""
    mpp: float | None = None
    """µm/px that it was trained at; None also for any."""
    normalisation: str | None = None
    """What is subtracted from, and divides, pixels in [0, 1]."""
    output: str | None = None
    """What a tile becomes."""
    precision: str | None = None
    """Number format that its authors run it in."""
    interpolation: str | None = None
    """How a tile is brought to the size of the network's input, where they differ."""
    licence: str | None = None
    """Of the code and, where it comes with any, the weights."""
    gated: bool = False
    """Whether its page must be accepted before its weights can be fetched."""


_Factory = Callable[..., Any]

_VITS: dict[str, tuple[_Factory, int]] = {
    "vit_tiny_patch16_224": (vit_tiny_patch16_224, 192),
    "vit_small_patch16_224": (vit_small_patch16_224, 384),
    "vit_base_patch16_224": (vit_base_patch16_224, 768),
    "vit_large_patch16_224": (vit_large_patch16_224, 1024),
}
TINY = "tilestream-tiny"
"""Our own pretrained encoder, whose weights are part of the package; its card lies beside them."""

TINY_WEIGHTS = Path(__file__).parent / "box" / f"{TINY}.safetensors"


def tilestream_tiny(**options: Any) -> VisionTransformer:
    """ViT-Ti/16 pretrained without labels on H&E, for tiles of about 0.25 to 2 µm/px; `options` are fields of `ViTConfig`."""
    encoder = vit_tiny_patch16_224(**options)
    apply_weights(encoder, load_weights(TINY_WEIGHTS), TINY_WEIGHTS)
    encoder.mpp, encoder.mpp_range = 0.5, (0.25, 2.0)
    return encoder


_BUILT_IN: dict[str, _Factory] = {
    "patch_embed": PatchEmbed,
    TINY: tilestream_tiny,
    **{name: factory for name, (factory, _) in _VITS.items()},
}
_VIT_ARGS = frozenset(f.name for f in fields(ViTConfig)) - {"dim", "depth", "heads", "patch", "seed"}
_PATCH_ARGS = frozenset({"dim", "patch"})


def known_encoders() -> list[EncoderEntry]:
    """Our encoders, presets, then those of installed packages by name; no package is imported."""
    ours = [
        EncoderEntry(name, "tilestream", dim, 224, None, "mean 0.5, std 0.5", "class token", licence="Apache-2.0")
        for name, (_, dim) in _VITS.items()
    ]
    patches = EncoderEntry("patch_embed", "tilestream", 192, None, None, "ImageNet", "patch tokens", licence="Apache-2.0")
    others = [EncoderEntry(point.name, point.dist.name if point.dist else point.value) for point in _entry_points().values()]
    tiny = EncoderEntry(TINY, "tilestream, in the package", 192, 224, 0.5, "mean 0.5, std 0.5", "class token", licence="Apache-2.0")
    return [tiny, *ours, patches, *(_preset_entry(preset) for preset in PRESETS.values()), *others]


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
        returns (n, dim), or (n, k * k, dim) for tokens; `dim` is an attribute.

    Raises
    ------
    ConfigError
        Where the name is unknown, `encoder.args` do not fit the factory, what it returns is not an encoder, or the weights do not fit.
    InputError
        Where the weights file cannot be read.
    """
    if spec.name in PRESETS:
        return _build_preset(spec, PRESETS[spec.name])
    encoder = _call_factory(spec)
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"encoder.name: {spec.name!r} returned a {type(encoder).__name__}, but it must return a torch.nn.Module.")
    dim = getattr(encoder, "dim", None)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ConfigError(f"encoder.name: the module of {spec.name!r} has dim = {dim!r}, but dim must be its number of features, an int.")
    if spec.weights is not None:
        target = encoder.model if isinstance(encoder, TimmEncoder) else encoder
        apply_weights(target, load_weights(weights_file(spec.weights)), spec.weights)
        encoder.untrained = False  # type: ignore[assignment]
    freeze(encoder)
    return encoder


def weights_file(weights: str) -> str:
    """The path of a config's `weights`: a file of this machine, or one fetched from the hub."""
    return str(fetch_weights(weights)) if is_hub_id(weights) else weights


def _build_preset(spec: EncoderSpec, preset: Preset) -> nn.Module:
    """A preset with its authors' weights, from a file where one is given, else from the hub."""
    if preset.vit is None:
        if preset.through == "module:factory":
            raise ConfigError(
                f"encoder.name: {preset.name} is no plain vision transformer and needs its authors' code, which is not part of this package. "
                f"Write a function that builds it ({preset.page}) and set encoder.name to module:factory."
            )
        return build_encoder(EncoderSpec(preset.through, spec.weights, spec.args))
    for key in spec.args:
        if key != "output":
            raise _unknown_argument(spec, key, frozenset({"output"}))
    if spec.weights is not None:
        path = weights_file(spec.weights)
    else:
        try:
            path = str(fetch_file(preset.repository, preset.file))
        except FileNotFoundError as error:
            raise InputError(
                f"{preset.repository} has no {preset.file} any more. Fetch its weights from {preset.page} and set encoder.weights."
            ) from error
    encoder = preset_vit(preset, **spec.args)
    apply_weights(encoder, preset_state(preset, encoder, load_weights(path)), path)
    return encoder


def preset_vit(preset: Preset, **options: Any) -> VisionTransformer:
    """Our vision transformer in the shape of a preset; `options` are fields of `ViTConfig`. Its weights are not loaded yet."""
    assert preset.vit is not None, "only plain vision transformers run on ours"
    mean, std = preset.pixels
    encoder = VisionTransformer(ViTConfig(**{"mean": mean, "std": std, **preset.vit, **options}))
    encoder.mpp = preset.mpp
    return encoder


def preset_state(preset: Preset, encoder: VisionTransformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A preset's state dict under our names, positions interpolated to the tile's patches."""
    config = encoder.config
    found = to_our_names(state, embed_prefix=config.embed_prefix)
    resize_positions(found, config.side, config.prefix if config.embed_prefix else 0, antialias=preset.antialias)
    return found


def _preset_entry(preset: Preset) -> EncoderEntry:
    """The row of a preset in the table."""
    mean, std = preset.pixels
    named = {IMAGENET: "ImageNet", HALF: "mean 0.5, std 0.5"}
    pixels = named.get(preset.pixels, f"mean {', '.join(f'{v:.3g}' for v in mean)}; std {', '.join(f'{v:.3g}' for v in std)}")
    if preset.vit is None:
        dim, tile, output, interpolation = preset.other["dim"], preset.other["tile"], preset.other["output"], None
        source = f"{preset.repository} by {preset.through}"
    else:
        config = ViTConfig(**preset.vit)
        dim, tile = config.dim * (2 if config.output == "class+mean" else 1), config.tile or config.img_size
        output = {"class": "class token", "class+mean": "class token, mean of patches"}[config.output]
        interpolation = config.interpolation if config.tile else None
        source = preset.repository
    return EncoderEntry(
        preset.name, source, dim, tile, preset.mpp, pixels, output, preset.precision, interpolation, preset.licence, preset.gated
    )


def random_weights(spec: EncoderSpec, encoder: nn.Module) -> bool:
    """Whether the weights are untrained, which a run must announce.

    True for our encoders without a weights file; another encoder says so itself, with an attribute `untrained = True`.
    """
    if spec.weights is not None:
        return False
    return (spec.name in _BUILT_IN and spec.name != TINY) or bool(getattr(encoder, "untrained", False))


def _call_factory(spec: EncoderSpec) -> Any:
    if spec.name in _BUILT_IN:
        allowed = _PATCH_ARGS if spec.name == "patch_embed" else _VIT_ARGS
        for key in spec.args:
            if key not in allowed:
                raise _unknown_argument(spec, key, allowed)
        return _BUILT_IN[spec.name](**spec.args, seed=spec.seed)
    if spec.name.startswith("timm:"):
        return TimmEncoder(spec.name.removeprefix("timm:"), pretrained=spec.weights is None, **spec.args)
    factory = _find_factory(spec.name)
    _check_arguments(spec, factory)
    with user_code(f"encoder.name: {spec.name}", "building the encoder"):
        return factory(**spec.args)


def _find_factory(name: str) -> _Factory:
    prefix, colon, attribute = name.partition(":")
    if prefix == "hf" and colon:
        return partial(TransformersEncoder, attribute)
    if colon:
        return _import_factory(name, prefix, attribute)
    points = _entry_points()
    if name not in points:
        known = [*_BUILT_IN, *PRESETS, *points]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)} and module:factory."
        raise ConfigError(f"encoder.name: {name!r} is unknown. {hint}")
    try:
        found = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"encoder.name: {name!r}, which is {points[name].value}, cannot be imported ({error}). Reinstall it.") from error
    return _checked_callable(name, found)


def _import_factory(name: str, module_name: str, attribute: str) -> _Factory:
    try:
        with user_code(f"encoder.name: {name}", f"importing {module_name}", passing=(ImportError, ValueError, TypeError)):
            module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # an empty name is a ValueError, a relative one a TypeError
        raise ConfigError(
            f"encoder.name: the module of {name!r} cannot be imported ({error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=1, cutoff=0.4)
        hint = f"Did you mean {module_name}:{near[0]}?" if near else "Set it to module:factory."
        raise ConfigError(f"encoder.name: {module_name} has no {attribute!r}. {hint}")
    return _checked_callable(name, found)


def _checked_callable(name: str, found: Any) -> _Factory:
    if not callable(found):
        raise ConfigError(f"encoder.name: {name!r} is a {type(found).__name__}, but it must be a function that returns a torch.nn.Module.")
    factory: _Factory = found
    return factory


def _check_arguments(spec: EncoderSpec, factory: _Factory) -> None:
    """Refuse arguments that the factory does not take and the lack of those that it needs."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature; calling tells
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in spec.args:
            if key not in {p.name for p in named}:
                raise _unknown_argument(spec, key, frozenset(p.name for p in named))
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in spec.args:
            raise ConfigError(f"encoder.args.{parameter.name}: {spec.name!r} needs it. Set it.")


def _unknown_argument(spec: EncoderSpec, key: str, allowed: frozenset[str]) -> ConfigError:
    near = difflib.get_close_matches(str(key), sorted(allowed), n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(sorted(allowed)) or 'none'}."
    return ConfigError(f"encoder.args.{key}: {spec.name!r} takes no such argument. {hint}")


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name)}
