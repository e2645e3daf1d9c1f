"""Weights from files: read without running anything that is in them, loaded strictly, and named by a digest."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from tilestream.config.local_files import refuse_special
from tilestream.errors import ConfigError, InputError

_PICKLED = (".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model", "teacher")
_HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors format itself."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        `.safetensors`, or `.pth`, `.pt`, `.bin` as `torch.save` writes them. Weights inside `state_dict`, `model` or `teacher` are
        taken out.

    Returns
    -------
    state : dict of str to Tensor
        On the CPU, in the file's dtypes.

    Raises
    ------
    InputError
        Where the file is missing, of another kind, damaged, or holds anything but tensors; it says which file, what and what to do.
    """
    path = Path(path)
    refuse_special(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such weights file. Set weights to a .safetensors or .pth file, or to null for random ones.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path)
    raise InputError(f"{path}: weights files end in .safetensors, {', '.join(_PICKLED)}, not {path.suffix!r}. Convert it with safetensors.")


def apply_weights(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, section: str = "encoder") -> None:
    """Load a state dict strictly: every parameter is given, and nothing is left over.

    Keys that begin with one of the module's `ignored_weights` (a tuple of prefixes, such as a classifier's) are dropped first.

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

    Raises
    ------
    ConfigError
        Listing the first missing keys, unexpected keys and differing shapes.
    """
    ignored: tuple[str, ...] = getattr(module, "ignored_weights", ())
    state = {key: value for key, value in state.items() if not key.startswith(ignored)}
    own = module.state_dict()
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    problems = [
        f"{len(found)} {kind}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for kind, found in (("keys missing", missing), ("keys unexpected", unexpected), ("shapes differ", shapes))
        if found
    ]
    if problems:
        raise ConfigError(
            f"{section}.weights: {path} does not fit the model. {'. '.join(problems)}. Set the other keys of {section} to match it."
        )
    module.load_state_dict(state)


def weights_digest(module: nn.Module) -> str:
    """SHA-256, in hex, over names, dtypes, shapes and bytes of the state dict; equal for equal weights on any device."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}. The file is damaged or incomplete; fetch or write it again.")


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than plain weights, or is damaged; nothing in it was executed. Save its state_dict() as .safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise _damaged(path, f"torch.load fails ({type(error).__name__})") from error
    while isinstance(found, dict) and (inner := next((k for k in _WRAPPERS if isinstance(found.get(k), dict)), None)):
        found = found[inner]
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path}: holds a {type(found).__name__} where a state dict of tensors was expected. Save the model's state_dict()."
        )
    for key, value in found.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise InputError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor. Save the model's state_dict() alone.")
    return dict(found)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the format: 8 bytes little-endian header length, JSON header, then the tensors' bytes without gap or overlap."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise _damaged(path, f"its header claims {length} bytes, the file has {size} (limit {_HEADER_LIMIT})")
        entries = _parse_header(path, file.read(length), size - 8 - length)
        return {name: _read_tensor(path, file, 8 + length + begin, dtype, shape) for name, (begin, dtype, shape) in entries.items()}


def _parse_header(path: Path, raw: bytes, data_size: int) -> dict[str, tuple[int, torch.dtype, list[int]]]:
    """Name to (first byte, dtype, shape), after checking that the tensors cover all of the data once."""
    try:
        header = json.loads(raw, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, tuple[int, torch.dtype, list[int]]] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _parse_entry(path, name, entry)
        spans.append((begin, end, name))
        entries[name] = (begin, dtype, shape)
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise _damaged(path, f"{name!r} begins at byte {begin} of the data, the tensor before it ends at {reached}")
        reached = end
    if reached != data_size:
        raise _damaged(path, f"its tensors take {reached} bytes, but {data_size} follow the header")
    return entries


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            type(s) is int and s >= 0 for s in shape
        ):
            pass
        case _:
            raise _damaged(path, f"{name!r} has no valid dtype, shape and data_offsets")
    if kind not in _DTYPES:
        raise InputError(f"{path}: {name!r} has dtype {kind!r}, which is not one of {', '.join(_DTYPES)}. Convert it to F32.")
    dtype = _DTYPES[kind]
    if not 0 <= begin <= end or end - begin != math.prod(shape) * dtype.itemsize:
        raise _damaged(path, f"{name!r} of shape {shape} and dtype {kind} cannot lie at bytes {begin} to {end}")
    return dtype, shape, begin, end


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _read_tensor(path: Path, file: BinaryIO, begin: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Read one tensor into memory of its own, so that any offset in the file is aligned."""
    buffer = bytearray(math.prod(shape) * dtype.itemsize)
    if not buffer:
        return torch.empty(shape, dtype=dtype)
    file.seek(begin)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise _damaged(path, f"it ends before byte {begin + len(buffer)}")
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
