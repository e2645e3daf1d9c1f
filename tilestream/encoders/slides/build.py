"""A slide encoder from a config, with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.factories import refuse_unknown
from tilestream.encoders.slides.files import slide_weights
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.encoders.slides.remote import build_remote
from tilestream.encoders.weight_files import load_weights
from tilestream.encoders.weights import apply_weights
from tilestream.errors import ConfigError
from tilestream.models.slides.alibi import AlibiEncoder, alibi_options
from tilestream.models.slides.base import SlideEncoder
from tilestream.models.slides.gated import FAMILIES
from tilestream.models.slides.longnet import LongNet
from tilestream.models.slides.regions import RegionEncoder
from tilestream.models.slides.specs import AlibiSpec, GatedSpec, LongNetSpec, RegionSpec, RemoteSpec


def build_slide_encoder(pool: OnePool) -> SlideEncoder:
    """The slide encoder that a pool names, with its weights, in fp32 on the CPU.

    Raises
    ------
    ConfigError
        It takes no such arguments, or the weights do not fit it.
    InputError
        The weights cannot be read or fetched.
    """
    preset = SLIDE_PRESETS[pool.name]
    refuse_unknown(preset.name, pool.args, preset.options, "pool")
    if isinstance(preset.spec, RemoteSpec):
        return build_remote(preset, pool)
    path = slide_weights(pool)
    assert path is not None, "slide encoders have weights"
    state = load_weights(path)
    try:
        module = _make(preset.spec, pool, state)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"pool.args: {error}.") from error
    if (kept := getattr(module, "kept_weights", "")) and any(kept in key for key in state):
        state = {key: value for key, value in state.items() if kept in key}
    apply_weights(module, state, path, "pool")
    return module


def _make(spec: LongNetSpec | AlibiSpec | RegionSpec | GatedSpec, pool: OnePool, state: Mapping[str, Tensor]) -> SlideEncoder:
    """The module of a shape; its weights are whatever lay in its memory."""
    if isinstance(spec, LongNetSpec):
        return LongNet(spec, **pool.args, seed=None)
    if isinstance(spec, AlibiSpec):
        return AlibiEncoder(spec, **alibi_options(state))
    if isinstance(spec, RegionSpec):
        return RegionEncoder(spec)
    gates = {key.partition("wsi_embedders.attn.")[2].partition(".")[0] for key in state if "wsi_embedders.attn." in key}
    return FAMILIES[spec.family](replace(spec, heads=len(gates) or spec.heads))
