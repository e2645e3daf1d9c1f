"""State dicts into modules: wrappings of names taken off, loaded strictly, named by a digest."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tilestream.encoders.weight_files import load_weights, read_weights
from tilestream.errors import ConfigError

__all__ = ["apply_weights", "load_weights", "module_digest", "read_weights", "state_digest", "strip_prefix", "weights_digest"]

_OURS = frozenset(
    {
        "training",
        "dim",
        "tile_size",
        "mpp",
        "mpp_range",
        "size",
        "overlap",
        "stride",
        "context",
        "classes",
        "vector",
        "notes",
        "untrained",
        "bands",
    }
)
"""Attributes of a module that are asked for by name, and stand in recipes themselves or decide no number."""

_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts into the names of modules that it compiled or wrapped, wherever they are."""

_AVERAGED = re.compile(r"(?:^|[._])(?:teacher|ema)(?:[._]|$)")
"""In the prefix of the copy of a network that is evaluated."""


def strip_prefix(
    state: Mapping[str, Tensor], names: Iterable[str], path: str | Path, section: str = "encoder"
) -> tuple[dict[str, Tensor], list[str]]:
    """Take off what stands before a model's names (`module.`, `teacher.backbone.`, ...): the prefix under which most of them are found.

    Parameters
    ----------
    state : mapping of str to Tensor
        From `load_weights`.
    names : iterable of str
        Names that the model has.
    path, section : str or Path, str
        Named in the error.

    Returns
    -------
    state : dict of str to Tensor
        What has the prefix, without it.
    notes : list of str
        What was taken off and left out, in words; empty where nothing was.

    Raises
    ------
    ConfigError
        The names are found under several prefixes alike, none of them a teacher's or an average's.
    """
    plain = {_WRAPPED.sub("", key): value for key, value in state.items()}
    unwrapped = ["took the names that torch gives to compiled or wrapped modules off"] if plain.keys() != state.keys() else []
    wanted = set(names)
    counts = Counter(prefix for key in plain for prefix, name in _splits(key) if name in wanted)
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    if not best or "" in best:
        return plain, unwrapped
    averaged = [prefix for prefix in best if _AVERAGED.search(prefix)]
    if len(best) > 1 and len(averaged) != 1:
        raise ConfigError(f"{section}.weights: {path} holds several networks alike ({', '.join(sorted(best))}). Save one of them alone.")
    prefix = (averaged if len(best) > 1 else best)[0]
    found = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    others = sorted({key.partition(".")[0] for key in plain if not key.startswith(prefix)})
    left = f"; left out {len(plain) - len(found)} others ({', '.join(others[:4])})" if others else ""
    return found, [*unwrapped, f"took {prefix!r} off {len(found)} names{left}"]


def _splits(key: str) -> Iterable[tuple[str, str]]:
    """A dotted name cut before each of its parts."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
    return ((key[:start], key[start:]) for start in starts)


def apply_weights(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, section: str = "encoder") -> list[str]:
    """Load a state dict strictly: every parameter is given, and nothing is left over.

    What stands before the module's names is taken off. Keys that then begin with one of the module's `ignored_weights` (a tuple of
    prefixes, such as a classifier's) are dropped.

    Parameters
    ----------
    module : nn.Module
        Its parameters are overwritten in place and keep their dtype.
    state : mapping of str to Tensor
        From `load_weights`.
    path : str or Path
        Named in the error.
    section : str
        Section of the config whose `weights` the path is; named in the error.

    Returns
    -------
    notes : list of str
        What was taken off the names, in words.

    Raises
    ------
    ConfigError
        Listing the first missing keys, unexpected keys and differing shapes.
    """
    own = module.state_dict()
    state, notes = strip_prefix(state, own, path, section)
    ignored: tuple[str, ...] = getattr(module, "ignored_weights", ())
    state = {key: value for key, value in state.items() if not key.startswith(ignored)}
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    # Whole numbers for weights are those of a quantised model, whose scales are elsewhere: cast to floats they mean nothing.
    quantised = [
        f"{key} is {state[key].dtype}"
        for key in own
        if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
    ]
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    problems = [
        f"{len(found)} {kind}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for kind, found in (
            ("keys missing", missing),
            ("keys unexpected", unexpected),
            ("shapes differ", shapes),
            ("hold no floats", quantised),
        )
        if found
    ]
    if problems:
        raise ConfigError(
            f"{section}.weights: {path} does not fit the model. {'. '.join([*problems, *notes])}. Set the other keys of {section} to match it."
        )
    module.load_state_dict(state)
    return notes


def weights_digest(module: nn.Module) -> str:
    """SHA-256, in hex, over names, dtypes, shapes and bytes of the state dict; equal for equal weights on any device."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Any]) -> str:
    """The same of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def module_digest(module: nn.Module, within: frozenset[int] = frozenset()) -> str:
    """As `weights_digest`, and for what else a module of others computes with: buffers that are not saved, and numbers and arrays that it holds as attributes.

    Two modules of the same digest may still differ in their code, and in what that reads when it runs. `within` are the ids of what the
    module was come upon in: parts may refer to the whole.
    """
    within |= {id(module)}
    weights, digest = weights_digest(module), hashlib.sha256()
    kept, found = set(module.state_dict()), False
    for name, part in module.named_modules():
        held = {key: buffer for key, buffer in part.named_buffers(recurse=False) if f"{name}.{key}".removeprefix(".") not in kept}
        if not type(part).__module__.startswith("torch."):
            held |= {key: value for key, value in vars(part).items() if key not in _OURS and key not in _MODULE}
        for key in sorted(held):
            for told in _numbers(held[key], within):
                digest.update(f"{name}\0{key}\0".encode() + told)
                found = True
    return hashlib.sha256(weights.encode() + digest.digest()).hexdigest() if found else weights


_MODULE = frozenset(vars(nn.Module()))
"""What every module has."""


def _numbers(value: object, within: frozenset[int]) -> Iterable[bytes]:
    """The numbers in a value as bytes, in a fixed order; none of what is no number, or of what the value was come upon in."""
    if id(value) in within:
        return
    if isinstance(value, Tensor):
        yield (
            f"{value.dtype}{tuple(value.shape)}".encode()
            + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        yield f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, bool | int | float | complex):
        yield repr(value).encode()
    elif isinstance(value, nn.Module):
        yield module_digest(value, within).encode()
    elif isinstance(value, list | tuple):
        for k, each in enumerate(value):
            yield from (str(k).encode() + told for told in _numbers(each, within | {id(value)}))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from (str(key).encode() + told for told in _numbers(value[key], within | {id(value)}))
