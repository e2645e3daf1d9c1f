"""Whether a context that was fitted is given what it was fitted on: encoder and its weights, size, step and resolution of tiles."""

from __future__ import annotations

from tilestream.config.schema import Config
from tilestream.encoders.contexts.context_file import about_of, settle_context
from tilestream.errors import ConfigError, InputError, TilestreamError
from tilestream.stages.worker_settings import EncoderFacts

TOLERANCE = 0.05
"""How far resolutions may be apart, as a share."""


def with_fitted_context(config: Config) -> Config:
    """The config with its context in the shape that the context's file has. Raises ConfigError where the config says otherwise."""
    if config.context is None:
        return config
    return config.model_copy(update={"context": settle_context(config.context)})


def check_fitted_context(facts: EncoderFacts, config: Config) -> None:
    """Refuse a fitted context behind another encoder, other tiles or another resolution.

    Raises
    ------
    ConfigError
        With both values.
    """
    about = None if config.context is None else about_of(config.context)
    if about is None or about.fitted is None:
        return
    fitted, tiles = about.fitted, config.tiles
    assert config.context is not None
    head = f"context.weights: {config.context.weights} was fitted on"
    if fitted.encoder != facts.name:
        raise ConfigError(
            f"{head} {fitted.encoder}, but encoder.name is {facts.name}. Set encoder to {fitted.encoder}, or fit a context of your own."
        )
    if fitted.precision == facts.precision and fitted.encoder_sha256 != facts.digest:
        raise ConfigError(
            f"{head} {fitted.encoder} with weights {fitted.encoder_sha256[:12]}, but these are {facts.digest[:12]}. "
            "Set encoder.weights to the file that it was fitted with, or fit a context of your own."
        )
    for key, was, now in (("size", fitted.tile, tiles.size), ("stride", fitted.stride, tiles.stride or tiles.size)):
        if was != now:
            raise ConfigError(
                f"{head} tiles of tiles.{key} {was:g} px, but it is {now:g}. Set tiles.{key} to {was:g}, or fit a context of your own."
            )
    if fitted.mpp is not None and tiles.mpp is not None:
        _check_mpp(head, fitted.mpp, tiles.mpp, "tiles.mpp is", ConfigError)


def check_context_resolution(config: Config, mpp: float | None, name: str) -> None:
    """With `tiles.level`, the resolution is the slide's: refuse one that the context was not fitted on. Raises InputError."""
    about = None if config.context is None else about_of(config.context)
    if about is None or about.fitted is None or about.fitted.mpp is None or mpp is None or config.tiles.level != 0:
        return
    assert config.context is not None
    _check_mpp(f"context.weights: {config.context.weights} was fitted on", about.fitted.mpp, mpp, f"level 0 of {name} has", InputError)


def _check_mpp(head: str, wanted: float, mpp: float, what: str, kind: type[TilestreamError]) -> None:
    if abs(mpp - wanted) > TOLERANCE * wanted:
        raise kind(f"{head} {wanted:.4g} µm/px, but {what} {mpp:.4g}. Set tiles.mpp to {wanted:.4g}, or fit a context of your own.")
