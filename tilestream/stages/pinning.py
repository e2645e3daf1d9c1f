"""One run, one way of computing: the first worker settles what the config leaves open, and every other one does it alike or is refused by name."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from tilestream import __version__
from tilestream.errors import UnfitWorkerError
from tilestream.stages.hardware import has_matrix_units, see_own_device
from tilestream.stages.worker_settings import Pinned, WorkerSettings

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
        pinned=Pinned(digest, units, cpu_capability() if exact_on_cpu else None, (("tilestream", __version__), ("torch", _torch()))),
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


def check_alike(pinned: Pinned, digest: str) -> None:
    """The same for what is known once the encoder is built: the digest of its weights."""
    if digest != pinned.weights_sha256:
        raise unfit("its encoder has other weights than that of the run's first worker", "Put the same file there")


def unfit(lack: str, way_out: str) -> UnfitWorkerError:
    """The error of a worker that lacks something."""
    return UnfitWorkerError(
        f"worker {os.uname().nodename} (process {os.getpid()}) is refused: {lack}. {way_out}, or leave this worker out."
    )
