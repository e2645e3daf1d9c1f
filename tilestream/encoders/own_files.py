"""Files that `fit` writes: tensors in safetensors, and in the header, as JSON, what the file says of itself.

Nothing in such a file is executed. Its bytes depend on what is written alone. Reading what it says of itself needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from tilestream.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""The version of what the header holds."""

About = TypeVar("About")


def write_own(path: str | os.PathLike[str], what: str, about: Any, state: Mapping[str, Tensor]) -> None:
    """Write a file of the kind `what`, whole or not at all; a file that is there is replaced."""
    from safetensors.torch import save

    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.write_bytes(save(dict(state), {key_of(what): json.dumps({"format": FORMAT, **asdict(about)}, sort_keys=True)}))
    part.replace(place)


def read_own(path: str | os.PathLike[str], what: str, about: type[About], fitted: type[Any]) -> About | None:
    """What a file says of itself, as the dataclass `about`, what it was fitted on as `fitted`; None where it is of no kind `what`.

    Raises
    ------
    InputError
        It is missing, damaged, or of a version that is not known.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told: Mapping[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{os.fspath(path)}: cannot be read as safetensors ({error}). Write or fetch it again.") from error
    if key_of(what) not in told:
        return None
    try:
        found = json.loads(told[key_of(what)])
        if found.pop("format") != FORMAT:
            raise InputError(
                f"{os.fspath(path)}: is a {what} of another version of tilestream; this one reads format {FORMAT}. Fit it again, or update."
            )
        on, known = found.pop("fitted"), {each.name for each in fields(about)}  # type: ignore[arg-type]
        kept = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if key in known}
        return about(**{**kept, "fitted": None if on is None else fitted(**on)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: what it says of its {what} cannot be read ({error}). Fit it again.") from error


def key_of(what: str) -> str:
    """Where the JSON stands among the metadata."""
    return f"tilestream_{what}"
