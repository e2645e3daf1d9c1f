"""One run, one way of computing: the first worker settles what the config leaves open, and every other one does it alike or is refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tilestream import __version__
from tilestream.encoders.factories import code_sha256, factory_file
from tilestream.encoders.weights import load_weights, state_digest
from tilestream.errors import UnfitWorkerError
from tilestream.sources.files import file_sha256
from tilestream.stages.hardware import has_matrix_units, see_own_device
from tilestream.stages.worker_settings import Digests, Pinned, WorkerSettings

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Number formats as a config names them."""


def cpu_capability() -> str:
    """The instruction set of this process's CPU kernels, as torch names it: DEFAULT, AVX2, AVX512, ..."""
    return torch.backends.cpu.get_cpu_capability()


def _torch() -> str:
    """The version of torch, whatever it was built for."""
    return str(torch.__version__).partition("+")[0]


def pin_settings(settings: WorkerSettings, device: torch.device, dtype: torch.dtype, digest: str, batch: int) -> WorkerSettings:
    """The settings of a worker with nothing left open, as all workers of its run are to have them."""
    units = settings.precision == "auto" and dtype is torch.bfloat16
    exact_on_cpu = settings.exact and device.type == "cpu"
    return replace(
        settings,
        device=device.type if settings.device == "auto" else settings.device,
        precision=PRECISIONS[dtype],
        batch=batch,
        compute_threads=torch.get_num_threads() if exact_on_cpu else settings.compute_threads,
        pinned=Pinned(
            weights_sha256=digest,
            matrix_units=units,
            cpu_capability=cpu_capability() if exact_on_cpu else None,
            versions=(("tilestream", __version__), ("torch", _torch())),
            code_sha256=code_sha256(settings.encoder),
        ),
    )


def check_machine(settings: WorkerSettings) -> None:
    """Refuse this process as a worker where its machine cannot compute what the run's first worker computes.

    Raises
    ------
    UnfitWorkerError
        With the host, what it lacks and the way out.
    """
    pinned = settings.pinned
    if pinned is None:  # the first of its run
        return
    for name, wanted in pinned.versions:
        if (there := _torch() if name == "torch" else __version__) != wanted:
            raise unfit(f"it has {name} {there}, and the run's first worker has {wanted}", "Install the same there")
    cuda = settings.device.startswith("cuda")
    if settings.device == "cuda":
        see_own_device()
    if cuda and not torch.cuda.is_available():
        raise unfit("it has no CUDA device, and the run's first worker has one", "Set compute.device to cpu")
    if pinned.matrix_units and not has_matrix_units(torch.device("cuda" if cuda else "cpu")):
        where = "device" if cuda else "processor"
        raise unfit(
            f"its {where} has no matrix units for bf16, and that of the run's first worker has", "Set encoder.precision to fp32 or bf16"
        )
    if pinned.cpu_capability not in (None, cpu_capability()):
        raise unfit(
            f"its processor's kernels are {cpu_capability()}, those of the run's first worker {pinned.cpu_capability}, and context.exact is true",
            "Set ATEN_CPU_CAPABILITY to the lesser of both (default, avx2, avx512) for all workers before they start",
        )


def begin_digest(state: Mapping[str, Tensor]) -> Future[str] | None:
    """The digest of weights on the host, in the making while they are used; None where some are on a device."""
    if any(value.device.type != "cpu" for value in state.values()):
        return None
    pool = ThreadPoolExecutor(1, "digest")
    found = pool.submit(state_digest, state)
    pool.shutdown(wait=False)
    return found


def check_alike(pinned: Pinned, settings: WorkerSettings, digest: str) -> None:
    """The same for what is known once the encoder is built: its code, and its weights by their digest."""
    if code_sha256(settings.encoder) != pinned.code_sha256:
        raise unfit(
            f"the code of {settings.encoder} ({factory_file(settings.encoder)}) is another than that of the run's first worker",
            "Put the same file there",
        )
    if digest != pinned.weights_sha256:
        raise unfit(
            f"its encoder has other weights ({digest[:12]}) than that of the run's first worker ({pinned.weights_sha256[:12]})",
            "Put the same file there",
        )


def load_pinned(path: str, field: str, pinned: Digests) -> dict[str, Tensor]:
    """A state dict from a file that must hold the bytes that it held when the run began.

    Parameters
    ----------
    path, field : str
        The file, and the key of the config that names it.
    pinned : tuple
        SHA-256 of each such file, by its path.

    Raises
    ------
    UnfitWorkerError
        It holds others here, or by now.
    """
    state = load_weights(path)
    check_pinned(path, field, pinned)
    return state


def check_pinned(path: str | None, field: str, pinned: Digests) -> None:
    """The same for a file that was loaded: afterwards, for what was read before it changed is what it held. Raises UnfitWorkerError."""
    wanted = dict(pinned).get(path or "")
    if wanted is not None and path is not None and file_sha256(Path(path)) != wanted:
        raise unfit(f"{field}: {path} holds other bytes there, or by now, than when the run began", "Put the same file there and run again")


def unfit(lack: str, way_out: str) -> UnfitWorkerError:
    """The error of a worker that lacks something."""
    return UnfitWorkerError(
        f"worker {os.uname().nodename} (process {os.getpid()}) is refused: {lack}. {way_out}, or leave this worker out."
    )
