"""A slide encoder from a config, with its weights."""

from __future__ import annotations

from tilestream.config.vectors.pool import Pool
from tilestream.encoders.factories import refuse_unknown
from tilestream.encoders.slides.files import slide_weights
from tilestream.encoders.slides.presets import SLIDE_PRESETS, SlidePreset
from tilestream.encoders.weight_files import load_weights
from tilestream.encoders.weights import apply_weights
from tilestream.errors import ConfigError
from tilestream.models.slides.base import SlideEncoder
from tilestream.models.slides.longnet import LongNet


def build_slide_encoder(pool: Pool) -> SlideEncoder:
    """The slide encoder that a pool names, with its weights, in fp32 on the CPU.

    Raises
    ------
    ConfigError
        It takes no such arguments, or the weights do not fit it.
    InputError
        The weights cannot be read or fetched.
    """
    preset = SLIDE_PRESETS[pool.name]
    module = _make(preset, pool)
    path = slide_weights(pool)
    assert path is not None, "slide encoders have weights"
    apply_weights(module, load_weights(path), path, "pool")
    return module


def _make(preset: SlidePreset, pool: Pool) -> SlideEncoder:
    """The module of a preset; its weights are whatever lay in its memory."""
    refuse_unknown(preset.name, pool.args, preset.options, "pool")
    try:
        return LongNet(preset.spec, **pool.args, seed=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"pool.args: {error}.") from error
