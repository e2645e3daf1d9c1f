"""Weights as people have them on disk: one file, shards with an index, a folder, a training checkpoint. Nothing in a file is executed."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tilestream.config.local_files import refuse_special
from tilestream.encoders.hub import INDEX, SUFFIXES
from tilestream.errors import InputError

_WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "teacher_slide_encoder",  # averaged weights are those that are evaluated
    "state_dict", "model_state_dict", "model", "module", "backbone", "encoder", "network", "net", "params",
)  # fmt: skip


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a weights file, of shards, or of a folder that holds either.

    Parameters
    ----------
    path : str or Path
        `.safetensors`; `.pth`, `.pt`, `.bin`, `.ckpt` or `.pth.tar` as `torch.save` writes them, read by its `weights_only`; an index
        `*.index.json`; or a folder with an index or with one such file. Of a training checkpoint the averaged weights (`teacher`, `ema`)
        are taken where there are any.

    Returns
    -------
    state : dict of str to Tensor
        On the CPU, in the file's dtypes.
    notes : list of str
        What was taken out of what, in words.

    Raises
    ------
    InputError
        Where the file is missing, of another kind, damaged, or holds anything but tensors; it says which file, what and what to do.
    """
    path = Path(path)
    refuse_special(path)
    found = _file_of_folder(path) if path.is_dir() else path
    if not found.is_file():
        raise InputError(f"{path}: there is no such weights file. Set weights to a .safetensors or .pth file, or to null for random ones.")
    if found.name.endswith(INDEX):
        return _read_shards(found), []
    if found.suffix == ".safetensors":
        return _read_safetensors(found), []
    if found.suffix in SUFFIXES:
        return _read_pickled(found)
    raise InputError(f"{path}: weights files end in {', '.join(SUFFIXES)} or {INDEX}, not {found.suffix!r}. Convert it with safetensors.")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of `read_weights` alone."""
    return read_weights(path)[0]


def _file_of_folder(folder: Path) -> Path:
    """The file of a folder to read: an index before single files, safetensors before others."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    indices = [p for p in files if p.name.endswith(f".safetensors{INDEX}")] or [p for p in files if p.name.endswith(INDEX)]
    whole = [p for p in files if p.suffix == ".safetensors"] or [p for p in files if p.suffix in SUFFIXES]
    for kind in (indices, whole):
        if len(kind) == 1:
            return kind[0]
        if kind:
            raise InputError(f"{folder}: holds {len(kind)} weights files ({', '.join(p.name for p in kind[:4])}). Name one of them.")
    raise InputError(f"{folder}: holds no weights: no {', no '.join(SUFFIXES)}. Set weights to a file that does.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shards = json.loads(index.read_text())["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, "it is no index of shards (no weight_map)") from error
    state: dict[str, Tensor] = {}
    for name in names:
        shard = index.parent / str(name)
        if Path(str(name)).name != str(name) or shard.suffix not in SUFFIXES:
            raise InputError(f"{index}: names the shard {str(name)!r}, but shards lie beside their index and end in {', '.join(SUFFIXES)}.")
        if not shard.is_file():
            raise InputError(f"{index}: its shard {name} is not there. Fetch all {len(names)} of them into one folder.")
        state |= _read_safetensors(shard) if shard.suffix == ".safetensors" else _read_pickled(shard)[0]
    missing = [key for key in shards if key not in state]
    if missing:
        raise _damaged(index, f"{len(missing)} tensors are in none of its shards ({', '.join(missing[:3])})")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors over the mapped file: pages come as they are copied out."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _read_pickled(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        zipped = zipfile.is_zipfile(path)
        program = zipped and _is_program(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training, which are plain values
            found = None if program else torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than plain weights, or is damaged; nothing in it was executed. Save its state_dict() as .safetensors."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # foreign parsers on a foreign file
        raise _damaged(path, f"torch.load fails ({type(error).__name__})") from error
    if program:
        raise InputError(f"{path}: is a TorchScript program, not weights; no code in it was run. Save its state_dict() as .safetensors.")
    return _unwrap(path, found)


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _unwrap(path: Path, found: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside a checkpoint, and which part of it that is."""
    taken: list[str] = []
    while isinstance(found, dict) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((key for key in _WRAPPERS if isinstance(found.get(key), dict) and found[key]), None)
        if inner is None:
            break
        taken.append(inner)
        found = found[inner]
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{path}: holds a {type(found).__name__} where a state dict of tensors was expected. Save the model's state_dict()."
        )
    for key, value in found.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise InputError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor. Save the model's state_dict() alone.")
    return dict(found), [f"weights are {'.'.join(taken)} of {path.name}"] if taken else []


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}. The file is damaged or incomplete; fetch or write it again.")
