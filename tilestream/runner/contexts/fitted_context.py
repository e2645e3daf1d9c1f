"""Whether a context that was fitted is given what it was fitted on: encoder and its weights, size, step and resolution of tiles."""

from __future__ import annotations

from collections.abc import Iterator

from tilestream.config.schema import Config
from tilestream.encoders.contexts.context_file import about_of, settle_context
from tilestream.errors import ConfigError, InputError
from tilestream.runner.heads.fitting import check_fitted_encoder, check_mpp, fitted_notes
from tilestream.stages.worker_settings import EncoderFacts

OTHERWISE = "fit a context of your own"
"""What a person may do who wants another encoder or resolution."""


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
    check_fitted_encoder(head, fitted, facts, OTHERWISE)
    for key, was, now in (("size", fitted.tile, tiles.size), ("stride", fitted.stride, tiles.stride or tiles.size)):
        if was != now:
            raise ConfigError(
                f"{head} tiles of tiles.{key} {was:g} px, but it is {now:g}. Set tiles.{key} to {was:g}, or fit a context of your own."
            )
    if fitted.mpp is not None and tiles.mpp is not None:
        check_mpp(head, fitted.mpp, tiles.mpp, "tiles.mpp is", ConfigError, OTHERWISE)


def context_notes(facts: EncoderFacts, config: Config) -> Iterator[str]:
    """What could not be compared of the encoder and the one that the context was fitted on."""
    about = None if config.context is None else about_of(config.context)
    if about is not None and about.fitted is not None:
        yield from fitted_notes("context", about.fitted, facts)


def check_context_resolution(config: Config, mpp: float, what: str) -> None:
    """Without `tiles.mpp`, the resolution is the slide's: refuse one that the context was not fitted on; `what` has it, in words. Raises InputError."""
    about = None if config.context is None else about_of(config.context)
    if about is None or about.fitted is None or about.fitted.mpp is None:
        return
    assert config.context is not None
    check_mpp(f"context.weights: {config.context.weights} was fitted on", about.fitted.mpp, mpp, what, InputError, OTHERWISE)
