"""What an address of a head's model is; looking loads nothing."""

from __future__ import annotations

import re
from pathlib import Path


def is_factory(model: str) -> bool:
    """Whether a model's address is `module:factory`."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", model) is not None and not Path(model).exists()
