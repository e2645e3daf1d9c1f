"""What a recipe holds of a head, field by field; and of one that a factory makes, the digest of its code."""

from __future__ import annotations

from typing import Any

from tilestream.encoders.heads.address import factory_code
from tilestream.store.records import flatten

CODE = "model_code_sha256"
"""The field of that digest. It is compared where both sides have it, and is no part of what a stage is known by: some stores lack it."""


def code_of_factory(model: str) -> dict[str, Any]:
    """`CODE` of a head's model; empty for one that no factory makes."""
    code = factory_code(model)
    return {} if code is None else {CODE: code}


def flat_head(own: dict[str, Any] | None, *, code: bool = False) -> dict[str, Any]:
    """A head's settings by dotted key; where the file of its model lies does not count, and the code of a factory on request."""
    flat = flatten(own or {})
    unwanted = ({"model"} if "model_sha256" in flat else set()) | (set() if code else {CODE})
    return {key: value for key, value in flat.items() if key not in unwanted}
