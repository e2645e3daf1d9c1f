"""Whether heads fit what the config gives them: what they were fitted on, the size and resolution of their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tilestream.config.schema import Config
from tilestream.encoders.presets import PRESETS
from tilestream.errors import ConfigError, InputError, TilestreamError
from tilestream.stages.heads.facts import HeadFacts
from tilestream.stages.worker_settings import EncoderFacts
from tilestream.tiles.coords_file import UNKNOWN

if TYPE_CHECKING:
    from tilestream.encoders.contexts.context_file import FittedOn
    from tilestream.encoders.heads.head_file import Fitted

NAMES = {
    "conch-v1": "conch", "conch-v15": "conch-v1.5", "hoptimus0": "h-optimus-0", "hoptimus1": "h-optimus-1", "midnight12k": "midnight-12k",
    "uni-v1": "uni", "uni-v2": "uni2-h",
}  # fmt: skip
"""Encoders that TRIDENT calls otherwise than we do, as `our_name` writes them (https://github.com/mahmoodlab/TRIDENT, its list of encoders)."""

OTHERWISE = "give another model"
TOLERANCE = 0.05
"""How far resolutions may be apart, as a share."""


def check_heads(heads: Iterable[HeadFacts], facts: EncoderFacts, config: Config, context_sha256: str | None) -> None:
    """Refuse heads that were made for something else than what they would be given.

    Raises
    ------
    ConfigError
        With both values.
    """
    for head in heads:
        if head.head.input == "pixels":
            if head.head.kind == "classify":
                _check_size(head, config)
        elif head.fitted is not None:
            _check_fitted(head, head.fitted, facts, config, context_sha256)
        if (wanted := wanted_mpp(head)) is not None and config.tiles.mpp is not None:
            check_mpp(_made_for(head), wanted, config.tiles.mpp, "tiles.mpp is", ConfigError, OTHERWISE)


def check_head_resolution(heads: Iterable[HeadFacts], mpp: float, what: str) -> None:
    """Without `tiles.mpp`, the resolution is the slide's: refuse one that a head was not made for; `what` has it, in words. Raises InputError."""
    for head in heads:
        if (wanted := wanted_mpp(head)) is not None:
            check_mpp(_made_for(head), wanted, mpp, what, InputError, OTHERWISE)


def _made_for(head: HeadFacts) -> str:
    return f"heads.{head.name}.model: {head.head.model} was made for"


def wanted_mpp(head: HeadFacts) -> float | None:
    """The resolution of tiles that a head needs; None where any will do, or where it reads pixels at a resolution of its own."""
    if head.head.input == "pixels":
        return head.mpp if head.head.kind == "classify" else None
    return head.fitted.mpp if head.fitted is not None else None


def precision_notes(heads: Iterable[HeadFacts], facts: EncoderFacts) -> Iterator[str]:
    """What cannot be compared: weights in one number format and in another have other digests."""
    for head in heads:
        if head.fitted is not None and head.head.input != "pixels":
            yield from fitted_notes(f"head {head.name}", head.fitted, facts)


def fitted_notes(what: str, fitted: Fitted | FittedOn, facts: EncoderFacts) -> Iterator[str]:
    """What `check_fitted_encoder` could not compare of a head or a context."""
    if fitted.encoder_sha256 is None and fitted.encoder == UNKNOWN:
        yield (
            f"{what} was fitted on imported embeddings whose file names no encoder: nothing tells whether it is {facts.name}. "
            f"Import them with --encoder and fit the {what.partition(' ')[0]} anew to have it compared."
        )
    elif fitted.encoder_sha256 is None:
        yield f"{what} was fitted on imported embeddings: that their encoder is {facts.name} is taken from its name, {fitted.encoder}."
    elif fitted.precision != facts.precision:
        yield (
            f"{what} was fitted on embeddings in {fitted.precision}, and these are in {facts.precision}: that the encoder's weights are "
            f"the same is taken from its name, {facts.name}. Set encoder.precision to {fitted.precision} to compare them."
        )


def check_fitted_encoder(whose: str, fitted: Fitted | FittedOn, facts: EncoderFacts, otherwise: str) -> None:
    """Refuse an encoder that something was not fitted on, or other weights of it; of imported embeddings all that is known is a name, or nothing."""
    if fitted.encoder_sha256 is None:
        named = our_name(fitted.encoder)
        if named not in (UNKNOWN, facts.name):
            raise ConfigError(
                f"{whose} imported embeddings of {fitted.encoder}, but encoder.name is {facts.name}. Set encoder to {named}, or {otherwise}. "
                f"Where both are one encoder, import them with --encoder {facts.name} and fit anew."
            )
        return
    if fitted.encoder != facts.name:
        raise ConfigError(f"{whose} {fitted.encoder}, but encoder.name is {facts.name}. Set encoder to {fitted.encoder}, or {otherwise}.")
    if fitted.precision == facts.precision and fitted.encoder_sha256 != facts.digest:
        raise ConfigError(
            f"{whose} {fitted.encoder} with weights {fitted.encoder_sha256[:12]}, but these are {facts.digest[:12]}. "
            f"Set encoder.weights to the file that it was fitted with, or {otherwise}."
        )


def our_name(imported: str) -> str:
    """Our name for the encoder that the file of imported embeddings names; what we have no other name for stays as it is."""
    plain = imported.strip().casefold().replace("_", "-")
    named = NAMES.get(plain, plain)
    return named if named in PRESETS else imported


def _check_fitted(head: HeadFacts, fitted: Fitted, facts: EncoderFacts, config: Config, context_sha256: str | None) -> None:
    key = f"heads.{head.name}.model"
    check_fitted_encoder(f"{key}: {head.head.model} was fitted on", fitted, facts, "fit the head anew")
    if fitted.tile != config.tiles.size:
        raise ConfigError(
            f"{key}: {head.head.model} was fitted on tiles of {fitted.tile} px, but tiles.size is {config.tiles.size}. "
            f"Set tiles.size to {fitted.tile}, or fit the head anew."
        )
    if head.head.input == "context" and fitted.context_sha256 not in (None, context_sha256):
        raise ConfigError(
            f"{key}: {head.head.model} was fitted behind the context {str(fitted.context_sha256)[:12]}, but this one is {str(context_sha256)[:12]} "
            "(settings and weights). Set context to what it was, or fit the head anew."
        )


def _check_size(head: HeadFacts, config: Config) -> None:
    if head.size is not None and head.size != config.tiles.size:
        raise ConfigError(
            f"heads.{head.name}.size: {head.size} px, but it classifies tiles, and tiles.size is {config.tiles.size}. Set tiles.size to {head.size}"
            + ("." if head.head.size is None else ", or leave heads." + head.name + ".size out.")
        )


def check_mpp(whose: str, wanted: float, mpp: float, what: str, kind: type[TilestreamError], otherwise: str) -> None:
    """Refuse a resolution that something was not fitted on."""
    if abs(mpp - wanted) > TOLERANCE * wanted:
        raise kind(f"{whose} {wanted:.4g} µm/px, but {what} {mpp:.4g}. Set tiles.mpp to {wanted:.4g}, or {otherwise}.")
