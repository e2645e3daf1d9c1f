"""Libraries that are optional: imported where they are used, refused in words where they are not there."""

from __future__ import annotations

import importlib
from typing import Any

from tilestream.errors import ConfigError


def import_optional(name: str, extra: str, key: str = "encoder.name") -> Any:
    """A library of an optional extra; `key` of the config needs it.

    Raises
    ------
    ConfigError
        It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: {name} is not installed. Run pip install 'tilestream[{extra}]'.") from error
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{key}: {name} cannot be imported ({error}). It may belong to another version of torch; install them together."
        ) from error
