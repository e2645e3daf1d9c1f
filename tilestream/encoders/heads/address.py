"""What an address of a head's model is; looking loads nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tilestream.encoders.factories import code_sha256

PROGRAM = "instanseg:"
"""Before the file of a TorchScript program of InstanSeg: whoever writes it lets that program run."""


def is_factory(model: str) -> bool:
    """Whether a model's address is `module:factory`."""
    return not model.startswith(PROGRAM) and re.fullmatch(r"\w+(\.\w+)*:\w+", model) is not None and not Path(model).exists()


def factory_code(model: str) -> str | None:
    """The digest of the code of a head that is a `module:factory`, which its weights alone do not tell; None for others."""
    return code_sha256(model) if is_factory(model) else None


BOX = Path(__file__).parent / "box"
"""Folder of the small heads that come with the package, each a file of its name and a card."""


def boxed(model: str) -> Path | None:
    """The file of a head that comes with the package; None for another address."""
    return BOX / f"{model}.safetensors" if model in box_names() else None


def box_names() -> list[str]:
    """Names of the heads that come with the package, to be written as `model`."""
    return sorted(path.stem for path in BOX.glob("*.safetensors"))
