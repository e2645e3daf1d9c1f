"""How one vector is made of a slide's: by a rule, by a rule that learns, or by a slide encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from tilestream.config.types import Arguments, Kept, LocalPath, Switch, ValueRefusedError, yaml_word

LEARNED = ("gated_attention", "queries")
"""Rules that learn."""

SLIDE_ENCODERS = (
    "gigapath",
    "gigapath-flash",
    "hipt-4k",
    "chief",
    "feather",
    "feather-uni2-h",
    "feather-uni",
    "madeleine",
    "moozy",
    "titan",
    "prism",
    "prism2",
    "care",
)
"""Slide encoders, which have a contract of their own with what they are given."""

PoolName: TypeAlias = Literal[
    "mean", "max", "mean+max", "gated_attention", "queries", "none",
    "gigapath", "gigapath-flash", "hipt-4k", "chief", "feather", "feather-uni2-h", "feather-uni", "madeleine", "moozy",
    "titan", "prism", "prism2", "care",
]  # fmt: skip


class OnePool(Kept):
    """How one vector is made of a slide's."""

    section: ClassVar[str] = "pool."
    kind: ClassVar[str] = "pool"

    name: PoolName = "mean"
    """The rule, or a slide encoder; `none` makes no slide vector. `tilestream encoders` says of slide encoders which tiles they take."""
    weights: LocalPath | None = None
    """File of weights of a rule that learns or of a slide encoder, relative to the working directory; None for seeded random ones of a rule, and for
    those of the authors' repository of a slide encoder."""
    args: Arguments = Field(default_factory=dict)
    """Options of a slide encoder: of gigapath `layer` (0 to 12), `output` (mean or class) and `encoder_norm`."""
    allow_mismatch: Switch = False
    """Whether a slide encoder may be given tiles of another encoder, size, resolution or overlap than it was made for. The recipe says so."""
    tokens: Switch = False
    """Whether the tokens that a slide encoder makes of tiles, before they become one vector, are kept: in `obsm/tokens` of the tiles, of a pool with a
    name in `obsm/tokens-<name>`."""
    trust_remote_code: Switch = False
    """Whether a slide encoder that only its authors' code can build (titan, prism, prism2, care) may run that code, which can do whatever you can;
    `weights` is then the folder of its repository."""

    @property
    def encodes(self) -> bool:
        """Whether it is a slide encoder."""
        return self.name in SLIDE_ENCODERS

    def recipe(self) -> dict[str, Any]:
        """What decides its numbers; keys that only slide encoders have, of those alone."""
        own = self.model_dump(mode="json", exclude={"kept_as", "beside"})
        return own if self.encodes else {key: own[key] for key in ("name", "weights")}

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """`pool: mean` is `{name: mean}`."""
        return {"name": data} if isinstance(data, str) else data

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name")
        if weights is not None and name not in (None, *LEARNED, *SLIDE_ENCODERS):
            raise ValueRefusedError(
                f"{yaml_word(weights)}, but pool.name is {name}, which has no weights. Leave them out, or set it to gated_attention, queries or "
                "a slide encoder"
            )
        return weights

    @field_validator("args", "allow_mismatch", "tokens", "trust_remote_code")
    @classmethod
    def _check_options(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("name")
        if value and name is not None and name not in SLIDE_ENCODERS:
            raise ValueRefusedError(f"{yaml_word(value)}, but pool.name is {name}, which is no slide encoder. Leave it out")
        return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _says_which(value: object) -> object:
    """A pool of a list, which has a name: the mean, which a pool is without one, is meant where there is no other."""
    known = {name for key, field in OnePool.model_fields.items() for name in (key, field.alias)}
    if isinstance(value, Mapping) and value.get("name") is None and set(value) <= known:  # other keys are told of first
        raise ValueRefusedError(f"{yaml_word(dict(value))} in a list does not say which pool it is. Write its name, or leave it out")
    return value


class Pool(OnePool):
    """How one vector is made of a slide's, and others beside it."""

    beside: Annotated[tuple[Annotated[OnePool, BeforeValidator(_says_which)], ...], BeforeValidator(_tuple)] = ()
    """Further pools, each kept under its `as`, else under its name, in which all but letters and digits is _. A list of pools is the first with the others
    beside it: `pool: [mean, max, {name: gigapath, as: slides}]`. Heads that read a slide's vector read the first."""

    @property
    def every(self) -> tuple[OnePool, ...]:
        """It and those beside it."""
        return (self, *self.beside)

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """`pool: mean` is `{name: mean}`, and `[mean, max]` is `{name: mean, beside: [max]}`."""
        if not isinstance(data, list | tuple):
            return super().written_out(data)
        if not data:
            raise ValueRefusedError("an empty list. Write none, or a pool")
        _says_which(data[0])
        first, *others = (super(Pool, cls).written_out(each) for each in data)
        if isinstance(first, Mapping) and first in others and not {"as", "kept_as"} & set(first):
            raise ValueRefusedError(f"{first['name']} stands in the list twice. Leave one out, or give one a name by `as`")
        return {**first, "beside": list(data[1:])} if isinstance(first, Mapping) and len(data) > 1 else first

    @field_validator("beside")
    @classmethod
    def _named(cls, beside: tuple[OnePool, ...], info: ValidationInfo) -> tuple[OnePool, ...]:
        if beside and "none" in (info.data.get("name"), *(pool.name for pool in beside)):
            raise ValueRefusedError("none stands among other pools. Leave it out")
        named = [pool.kept_as or re.sub(r"[^a-z0-9]+", "_", pool.name) for pool in beside]
        all_named = [*named, *filter(None, [info.data.get("kept_as")])]
        if twice := [name for name in named if all_named.count(name) > 1]:
            raise ValueRefusedError(f"two pools are kept as {twice[0]}. Give one of them another name by `as`")
        return tuple(pool.model_copy(update={"kept_as": name}) for pool, name in zip(beside, named, strict=True))
