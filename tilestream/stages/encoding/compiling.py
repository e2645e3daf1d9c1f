"""An encoder compiled, and what is kept on disk of compiling and measuring it for the next process."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from tilestream.config.local_files import user_cache

BACKEND = "inductor"
"""What compiles, as torch names it."""

CACHE_BYTES = 2 * 1024**3
"""Of kernels that are kept on disk, over all encoders."""


@dataclass(frozen=True)
class Measured:
    """What was measured of an encoder on a kind of device."""

    batch: int
    """Tiles a batch that served best."""
    tile_seconds: float
    """Seconds a tile in such batches, without compiling."""


def compiled_twin(encoder: nn.Module) -> nn.Module:
    """The encoder once more, over the same weights, with what is repeated in it to be compiled at its first call, once for all repetitions.

    Kernels are kept on disk for the next process.
    """
    keep_kernels()
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    twin = copy.deepcopy(encoder, dict(shared))
    blocks = getattr(twin, "blocks", None)
    for target in blocks if isinstance(blocks, nn.Sequential | nn.ModuleList) else [twin]:
        target.compile(fullgraph=True, dynamic=False, backend=BACKEND)
    return twin


def keep_kernels() -> None:
    """Have Inductor compile in this process, and keep what it makes in the user's cache; one that has grown past `CACHE_BYTES` starts anew."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # its processes would take more memory than they save time
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:  # where somebody else decides
        return
    with contextlib.suppress(OSError):  # another process does the same, or the home is not there or cannot be written to
        folder = user_cache("kernels")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        if sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > CACHE_BYTES:
            old = folder.with_name(f"kernels-{os.getpid()}")
            folder.rename(old)
            shutil.rmtree(old)


@contextlib.contextmanager
def one_measures() -> Iterator[None]:
    """Within it no other process of this user on this machine measures; without effect where the user's cache cannot be written to."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            user_cache("batches").mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((user_cache("batches") / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recall(encoder: nn.Module, tile: int, device: torch.device) -> Measured | None:
    """What an earlier process measured of an encoder of this shape on such a device, or None."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = Measured(**json.loads(_record(encoder, tile, device).read_text()))
        return found if found.batch >= 1 and found.tile_seconds > 0 else None
    return None


def remember(encoder: nn.Module, tile: int, device: torch.device, measured: Measured) -> None:
    """Keep it for `recall`; without effect where the user's cache cannot be written to."""
    with contextlib.suppress(OSError):
        path = _record(encoder, tile, device)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(measured)))
        part.replace(path)


def _record(encoder: nn.Module, tile: int, device: torch.device) -> Path:
    """Where it is kept: by what decides it, the encoder's shape, torch, and the kind of device."""
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else device
    shape = [(name, str(value.dtype), tuple(value.shape)) for name, value in encoder.named_parameters()]
    told = repr((type(encoder).__qualname__, shape, tile, torch.__version__, torch.version.cuda, str(card)))
    return user_cache("batches") / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
