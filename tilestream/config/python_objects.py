"""Modules and factories that a program hands to `run`: a config holds names, so each gets one, known to this process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilestream.errors import ConfigError

PREFIX = "python:"
"""Begins the name of an object of this process."""

_objects: dict[str, Callable[..., Any]] = {}


def name_object(found: Callable[..., Any]) -> str:
    """The name of an object, the same each time it is given: `python:module.Class`, numbered from the second of that kind on."""
    about = found if hasattr(found, "__qualname__") else type(found)
    plain = f"{PREFIX}{about.__module__}.{about.__qualname__}"
    number, name = 1, plain
    while name in _objects and _objects[name] is not found:
        number += 1
        name = f"{plain}#{number}"
    _objects[name] = found
    return name


def is_object_name(name: str) -> bool:
    """Whether a name was made by `name_object`."""
    return name.startswith(PREFIX)


def object_of(name: str) -> Callable[..., Any]:
    """The object of a name.

    Raises
    ------
    ConfigError
        It was named in another process.
    """
    if name not in _objects:
        raise ConfigError(
            f"encoder.name: {name.removeprefix(PREFIX)} was given in Python and lives in the process that made it alone. {WAY_OUT}"
        )
    return _objects[name]


WAY_OUT = (
    "Set compute.scheduler to inline, or put a function that returns the module into a file that workers can import "
    "and set encoder.name to module:function"
)
"""For those who need processes."""


def told_elsewhere(name: str, scheduler: str) -> str:
    """What is said of an object where a scheduler's workers are other processes."""
    own = name.removeprefix(PREFIX)
    return f"scheduler is {scheduler}, with other processes, but encoder.name is an object of this one ({own}). {WAY_OUT}"
