"""Presets on our own vision transformer: its shape, and their weights under its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tilestream.encoders.convert import ANCHORS, resize_positions, take_first_frame, to_our_names
from tilestream.encoders.hub import fetch_file
from tilestream.encoders.presets import Preset
from tilestream.encoders.weights import apply_weights, read_weights, strip_prefix
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import weights_follow
from tilestream.models.vit import VisionTransformer
from tilestream.models.vit_config import ViTConfig


def add_notes(encoder: nn.Module, notes: list[str]) -> None:
    """Add to what an encoder says of itself: `notes`, which a run shows and keeps."""
    encoder.notes = [*getattr(encoder, "notes", ()), *notes]  # type: ignore[assignment]


def build_preset(preset: Preset, weights: str | None, **options: Any) -> VisionTransformer:
    """A preset with its authors' weights, from a file where one is given, else from the hub; `options` are fields of `ViTConfig`.

    Raises
    ------
    ConfigError
        The weights do not fit, or something must be said of it that is not public.
    InputError
        They cannot be read or fetched.
    """
    for field in preset.asked:
        if field not in options:
            raise ConfigError(
                f"encoder.args.{field}: {preset.name} needs it. Only code behind its gate says how its patches are turned ({preset.page}, where "
                f"its rotary embedding is made). Set it as written there."
            )
    weights = weights or fetch_preset(preset)
    with weights_follow():
        encoder = preset_vit(preset, **options)
    state, notes = read_weights(weights)
    state = {_renamed(key, preset.names): value for key, value in state.items()}
    state, stripped = strip_prefix(state, ANCHORS, weights)
    apply_weights(encoder, preset_state(preset, encoder, state), weights)
    add_notes(encoder, [*notes, *stripped])
    return encoder


def fetch_preset(preset: Preset) -> str:
    """The path of a preset's weights, from the cache or the hub. Raises InputError or ConfigError, as `fetch_file`."""
    try:
        return str(fetch_file(preset.repository, preset.file))
    except FileNotFoundError as error:
        raise InputError(
            f"{preset.repository} has no {preset.file} any more. Fetch its weights from {preset.page} and set encoder.weights."
        ) from error


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def preset_vit(preset: Preset, **options: Any) -> VisionTransformer:
    """Our vision transformer in the shape of a preset; `options` are fields of `ViTConfig`. Its weights are not loaded yet."""
    assert preset.vit is not None, "only plain vision transformers run on ours"
    mean, std = preset.pixels
    encoder = VisionTransformer(ViTConfig(**{"mean": mean, "std": std, **preset.vit, **options}))
    encoder.mpp, encoder.mpp_range = preset.mpp, preset.mpp_range
    encoder.bands = preset.bands or encoder.bands
    return encoder


def preset_state(preset: Preset, encoder: VisionTransformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A preset's state dict, without what stands before its names, under our names; positions interpolated to the tile's patches."""
    config = encoder.config
    found = to_our_names(state, embed_prefix=config.embed_prefix)
    if preset.bands:
        take_first_frame(found, config.side**2)
    resize_positions(found, config.side, config.prefix if config.embed_prefix else 0, antialias=preset.antialias)
    return found
