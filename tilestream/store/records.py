"""Records as JSON, and checksums. Each record carries a checksum of itself: one that is cut or flipped reads as missing, and what it stood for is done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import Buffer

Sums = dict[str, list[Any]]
"""Size in bytes and checksum, by the object's name."""


def checksum(data: bytes | NDArray[np.uint8]) -> str:
    """BLAKE2b of 16 bytes, in hex."""
    return hashlib.blake2b(data if isinstance(data, bytes) else data.data, digest_size=16).hexdigest()


def sums_of(objects: Mapping[str, bytes | Buffer]) -> Sums:
    """Size and checksum of objects that are written."""
    return {key: [len(data), checksum(data.as_numpy_array() if isinstance(data, Buffer) else data)] for key, data in objects.items()}


def pack(record: dict[str, Any]) -> bytes:
    """A record as JSON, with a checksum of itself."""
    plain = json.loads(json.dumps(record))
    return json.dumps({**plain, "check": checksum(json.dumps(plain, sort_keys=True).encode())}, sort_keys=True).encode()


def unpack(raw: bytes | None) -> dict[str, Any] | None:
    """What `pack` was given; None where there is nothing, or a byte is not as it was written."""
    if raw is None or not _is_sound(raw):
        return None
    found: dict[str, Any] = json.loads(raw)
    del found["check"]
    return found


@lru_cache(16)  # the same records are read for each shard
def _is_sound(raw: bytes) -> bool:
    """Whether every byte of a record is as `pack` wrote it."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.pop("check", None) is not None and pack(found) == raw


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
