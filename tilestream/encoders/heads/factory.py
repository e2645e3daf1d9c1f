"""Heads that a function of a module makes: `module:factory`."""

from __future__ import annotations

import importlib

from torch import nn

from tilestream.encoders.factories import refuse_stale
from tilestream.errors import ConfigError, user_code


def load_factory(model: str, name: str) -> nn.Module:
    """What the factory returns, ready for inference.

    Raises
    ------
    ConfigError
        It cannot be imported or called, or returns no module; or its file holds other code than when this process imported it.
    """
    module_name, _, attribute = model.partition(":")
    key = f"heads.{name}.model"
    try:
        with user_code(f"{key}: {model}", f"importing {module_name}", passing=(ImportError, ValueError)):
            factory = getattr(importlib.import_module(module_name), attribute, None)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{key}: the module of {model!r} cannot be imported ({error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    if not callable(factory):
        raise ConfigError(f"{key}: {module_name} has no function {attribute!r}. Set it to module:factory.")
    refuse_stale(key, model, factory)
    with user_code(f"{key}: {model}", "building the head"):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{key}: {model!r} returned a {type(module).__name__}, but it must return a torch.nn.Module.")
    return module.eval().requires_grad_(requires_grad=False)
