"""The table of encoders: what each is, as far as it can be said without building it."""

from __future__ import annotations

from dataclasses import dataclass

from tilestream.encoders.presets import HALF, IMAGENET, Pixels, Preset
from tilestream.models.vit_config import ViTConfig, vector_words


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
    mpp_range: tuple[float, float] | None = None
    """Least and greatest µm/px that it serves, where that is more than `mpp`."""
    normalisation: str | None = None
    """What is subtracted from, and divides, pixels in [0, 1]."""
    output: str | None = None
    """What the vector of a tile is."""
    precision: str | None = None
    """Number format that its authors run it in."""
    interpolation: str | None = None
    """How a tile is brought to the size of the network's input, where they differ."""
    licence: str | None = None
    """Of the code and, where it comes with any, the weights."""
    gated: bool = False
    """Whether its page must be accepted before its weights can be fetched."""
    note: str | None = None
    """What else a user should know."""


def preset_entry(preset: Preset) -> EncoderEntry:
    """The row of a preset."""
    if preset.vit is None:
        dim, tile, output, interpolation = preset.other["dim"], preset.other["tile"], preset.other["output"], None
        source = f"{preset.repository} by {preset.through}"
    else:
        config = ViTConfig(**preset.vit)
        dim, tile = config.features, config.tile or config.img_size
        output = vector_words(config)
        interpolation = config.interpolation if config.tile else None
        source = preset.repository
    return EncoderEntry(
        preset.name, source, dim, tile, preset.mpp, preset.mpp_range, normalisation_words(preset.pixels), output, preset.precision,
        interpolation, preset.licence, preset.gated, preset.note,
    )  # fmt: skip


def normalisation_words(pixels: Pixels) -> str:
    """Mean and standard deviation in words."""
    mean, std = pixels
    named = {IMAGENET: "ImageNet", HALF: "mean 0.5, std 0.5"}
    return named.get(pixels, f"mean {', '.join(f'{v:.3g}' for v in mean)}; std {', '.join(f'{v:.3g}' for v in std)}")
