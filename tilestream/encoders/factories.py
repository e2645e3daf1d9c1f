"""Factories of encoders that are not ours: of installed packages, of modules, and handed over in Python."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import inspect
import tokenize
from collections.abc import Callable, Container, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from tilestream.config.python_objects import is_object_name, object_of
from tilestream.errors import ConfigError, InputError, user_code

ENTRY_POINT_GROUP = "tilestream.encoders"
"""Group in which an installed package names its encoder factories."""

LIBRARIES = ("timm", "hf")
"""What stands before the colon in names that are no module."""

Factory = Callable[..., Any]


def find_factory(name: str, known: Sequence[str]) -> Factory:
    """What makes the encoder of a name: a factory of an installed package, of a module, or handed over in this process.

    Parameters
    ----------
    name : str
        A name of an installed package's, `module:factory`, or one that a config gave an object.
    known : sequence of str
        Names of our own, for the error.

    Raises
    ------
    ConfigError
        There is none, or it cannot be imported or called.
    """
    if is_object_name(name):
        return _given_factory(name)
    prefix, colon, attribute = name.partition(":")
    if colon:
        return _import_factory(name, prefix, attribute)
    points = encoder_points()
    if name not in points:
        names = [*known, *points]
        near = [known_name for known_name in names if name and known_name.startswith(name)] or difflib.get_close_matches(
            name, names, n=1, cutoff=0.4
        )
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(names)} and module:factory."
        raise ConfigError(f"encoder.name: {name!r} is unknown. {hint}")
    try:
        found = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"encoder.name: {name!r}, which is {points[name].value}, cannot be imported ({error}). Reinstall it.") from error
    return _checked_callable(name, found)


def factory_file(name: str) -> Path | None:
    """The source file of the module of `module:factory`, found without importing anything; None for other names and where there is none."""
    module, colon, _ = name.partition(":")
    if not colon or module in LIBRARIES or is_object_name(name):
        return None
    spec, places = None, None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places) if parts[count - 1] else None
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def code_sha256(name: str) -> str | None:
    """SHA-256, in hex, over the code in that file, whatever stands in its comments and wherever its lines break; None where there is none."""
    file = factory_file(name)
    if file is None:
        return None
    try:
        with tokenize.open(file) as text:
            words = [token.string for token in tokenize.generate_tokens(text.readline) if token.type not in _SPACE]
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):  # an extension module, or no Python
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}. Put the file of {name} back.") from error
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


_SPACE = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
"""Words of Python that do nothing."""


def own_code(name: str, known: Container[str]) -> bool:
    """Whether an encoder of this name, none of the `known` ones of ours, is made by code of others."""
    return name not in known and name.partition(":")[0] not in LIBRARIES


def _import_factory(name: str, module_name: str, attribute: str) -> Factory:
    try:
        with user_code(f"encoder.name: {name}", f"importing {module_name}", passing=(ImportError, ValueError, TypeError)):
            module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # an empty name is a ValueError, a relative one a TypeError
        raise ConfigError(
            f"encoder.name: the module of {name!r} cannot be imported ({error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=1, cutoff=0.4)
        hint = f"Did you mean {module_name}:{near[0]}?" if near else "Set it to module:factory."
        raise ConfigError(f"encoder.name: {module_name} has no {attribute!r}. {hint}")
    factory = _checked_callable(name, found)
    refuse_stale("encoder.name", name, factory)
    return factory


def refuse_stale(key: str, name: str, factory: Any) -> None:
    """Refuse what this process imported as `module:factory` where the module's file holds other code by now; `key` is the config's. Raises ConfigError."""
    code = code_sha256(name)
    known, was = _imported.get(name, (None, None))
    if known is factory and was != code:
        raise ConfigError(
            f"{key}: {factory_file(name)} of {name} changed after this process had imported it. Start Python anew, or put the file back."
        )
    _imported[name] = factory, code


_imported: dict[str, tuple[Factory, str | None]] = {}
"""Factories that this process has imported, and the digest of their code then."""


def _checked_callable(name: str, found: Any) -> Factory:
    if not callable(found):
        raise ConfigError(f"encoder.name: {name!r} is a {type(found).__name__}, but it must be a function that returns a torch.nn.Module.")
    factory: Factory = found
    return factory


def check_arguments(name: str, args: Mapping[str, Any], factory: Factory) -> None:
    """Refuse arguments that the factory does not take and the lack of those that it needs."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature; calling tells
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        refuse_unknown(name, args, frozenset(p.name for p in named))
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in args:
            raise ConfigError(f"encoder.args.{parameter.name}: {name!r} needs it. Set it.")


def refuse_unknown(name: str, args: Mapping[str, Any], allowed: frozenset[str], section: str = "encoder") -> None:
    """Refuse arguments that an encoder, or what another section names, does not take, with the nearest that it does."""
    for key in args:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), sorted(allowed), n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(sorted(allowed)) or 'none'}."
            raise ConfigError(f"{section}.args.{key}: {name!r} takes no such argument. {hint}")


def encoder_points() -> dict[str, EntryPoint]:
    """Encoders of installed packages, by name; none is imported."""
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name)}


def _given_factory(name: str) -> Factory:
    """A factory that was handed to `run` in Python, or one that copies the module that was: the caller's stays as it is."""
    from torch import nn

    found = object_of(name)
    return (lambda: copy.deepcopy(found)) if isinstance(found, nn.Module) else found
