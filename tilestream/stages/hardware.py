"""The machine that a process runs on: devices, number formats, memory."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tilestream.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_PROBED = 8
"""Tiles that a half-precision encoder is tried on."""

_FAR = 8.0
"""Standard deviations from the mean of a band, of which one of them is made; reflectance of clouds lies there."""

PROGRAM_BYTES = 320 * 1024**2
"""Resident memory of a process that has imported what a run on a processor needs; a run measures its own."""

THREAD_BYTES = 48 * 1024**2
"""What a thread takes in which torch multiplies matrices: helpers, and buffers of its own, which stay."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable that names the devices that a process sees, read once, when it first uses one."""

P = ParamSpec("P")
T = TypeVar("T")

_COMPUTE = ThreadPoolExecutor(1, thread_name_prefix="mixing")


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """The function, always called in the same thread of this process, one call after another.

    Another thread in which torch multiplies matrices would take `THREAD_BYTES` more.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return _COMPUTE.submit(function, *args, **kwargs).result()

    return call


def pick_device(name: str) -> torch.device:
    """The device of a config value; auto is a CUDA device where there is one. Workers of one machine share its devices out by their number.

    Raises
    ------
    ConfigError
        The device is not there.
    """
    import torch

    if name in ("auto", "cuda"):
        see_own_device()
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", worker_number() % torch.cuda.device_count())
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            raise ConfigError(f"compute.device: {name}, but this machine has {count} CUDA devices. Set it to cpu or auto.")
    return torch.device(name)


def see_own_device() -> None:
    """Let a worker process see no other CUDA device of its machine than its own, which is then its first one.

    Libraries and users' code take the first device that they see where nobody names one: streams, events, graphs, and 0.5 GiB of memory for each
    process. Without effect outside of a worker process, on a machine with one device, and once CUDA is in use.
    """
    import torch

    before = os.environ.get(VISIBLE)
    devices = before.split(",") if before is not None else [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if not worker_address() or len(devices) < 2 or not torch.backends.cuda.is_built() or torch.cuda.is_initialized():
        return
    os.environ[VISIBLE] = devices[worker_number() % len(devices)]
    if torch._C._cuda_getDeviceCount() != 1:  # noqa: SLF001  # CUDA has looked already: torch.cuda.device_count would ask the driver instead
        del os.environ[VISIBLE]
        os.environ |= {} if before is None else {VISIBLE: before}


def count_cuda() -> int:
    """CUDA devices that torch has. Where no driver is installed there are none, and torch is not imported to say so."""
    if "torch" not in sys.modules and not has_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_driver() -> bool:
    """Whether the driver of a device that torch calls CUDA is on this machine: NVIDIA's library, or AMD's device file."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def has_amx() -> bool:
    """Whether the processor has matrix units, as its flags say."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def worker_number() -> int:
    """Number of the Dask worker that runs this task among those of its cluster; 0 outside of one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return 0
    try:
        return int(distributed.get_worker().name)
    except (ValueError, TypeError):  # no worker here, or one that somebody else named
        return 0


def worker_address() -> str:
    """Address of the Dask worker that runs this task; empty outside of one."""
    distributed = sys.modules.get("distributed")
    try:
        return str(distributed.get_worker().address) if distributed is not None else ""
    except ValueError:  # no worker here
        return ""


def has_matrix_units(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bf16 faster than those of fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001


def has_half_units(device: torch.device) -> bool:
    """Whether a device multiplies matrices of fp16 faster than those of fp32."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def pick_precision(name: str, device: torch.device, offered: tuple[str, ...] = ("fp32", "bf16")) -> torch.dtype:
    """The number format of a config value; auto is bf16 where it is `offered` and the device has matrix units for it, else fp16 likewise, else fp32.

    fp16 has three bits more than bf16; on an H100 it was 3 to 6 % slower. A model whose results leave its range is looked after by who asks.
    """
    import torch

    if name == "auto":
        if "bf16" in offered and has_matrix_units(device):
            return torch.bfloat16
        return torch.float16 if "fp16" in offered and has_half_units(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def cast_encoder(
    encoder: nn.Module, name: str, precision: str, tile: int, device: torch.device, bands: int = 0
) -> tuple[nn.Module, torch.dtype, list[str], Mapping[str, Tensor]]:
    """Bring an encoder to its number format and to a device; it is cast where it lies, for half as much is then copied.

    With `auto`, an encoder is cast only to a format that its attribute `precisions` names (a tuple of fp32, bf16, fp16); one that says
    nothing stays in fp32. In fp16, whose largest number is 65,504, an encoder is tried on tiles of noise, black and white: one that does
    not stay finite runs in bf16, or in fp32 where the device has no units for that. Single tiles that leave the range later are computed again (`WideTwin`).

    Parameters
    ----------
    encoder : nn.Module
        In fp32.
    name, precision : str
        Of the encoder, and `encoder.precision`.
    tile : int
        Side of the tiles, px.
    device : torch.device
        Where it is to run.
    bands : int
        Bands of a tile of values; 0 where tiles are colours.

    Returns
    -------
    encoder, dtype, notes, state
        The encoder in that format on the device, the format, what a person should know of it, and its state as it was before it was copied
        there: of one that was built on the host, on the host.
    """
    import torch

    offered: tuple[str, ...] = getattr(encoder, "precisions", ("fp32",))
    dtype = pick_precision(precision, device, offered)
    notes: list[str] = []
    if precision == "auto" and len(offered) == 1 and has_matrix_units(device):
        notes = [f"{name} runs in fp32: precision is auto, and the encoder does not say that it can be cast (attribute precisions)"]
    if dtype is torch.float16 and device.type == "cuda":
        half = cast_copy(encoder, dtype)
        state = _state(half)
        if _stays_finite(half.to(device), tile, device, bands):
            return half, dtype, notes, state
        del half
        wide = "bf16" if has_matrix_units(device) else "fp32"
        dtype, notes = pick_precision(wide, device), [f"{name} leaves the range of fp16 on probe tiles: it runs in {wide}"]
    cast = encoder if dtype is torch.float32 else encoder.to(dtype)
    state = _state(cast)
    return cast.to(device), dtype, notes, state


def cast_copy(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """An encoder once more in another number format; its weights are never held twice in their own."""
    from torch import nn

    parameters = [value for value in encoder.parameters() if type(value) is nn.Parameter and value.is_floating_point()]
    copies = {id(value): nn.Parameter(value.detach().to(dtype, copy=True), requires_grad=value.requires_grad) for value in parameters}
    return copy.deepcopy(encoder, dict(copies)).to(dtype)


def _state(encoder: nn.Module) -> dict[str, Tensor]:
    """The state of an encoder where it lies now."""
    return {key: value.detach() for key, value in encoder.state_dict().items()}


def _stays_finite(encoder: nn.Module, tile: int, device: torch.device, bands: int = 0) -> bool:
    import torch

    from tilestream.models.patch_embed import noise_tiles

    noise = noise_tiles(_PROBED, tile, bands)
    noise[0], noise[1] = 0, _FAR if bands else 255
    with torch.inference_mode():
        out: Tensor = encoder(noise.to(device))
    return bool(torch.isfinite(out).all())


def device_name(device: torch.device) -> str:
    """A device in words."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def describe_device(name: str) -> str:
    """The device of a config value in words, as a worker finds it."""
    return device_name(pick_device(name))


def peak_memory() -> int:
    """High-water mark of this process's resident memory in bytes (`VmHWM`; unlike ru_maxrss it starts anew at exec)."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123  # a pseudo-file of the kernel
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Give back what the heap holds of things that are gone, and let the high-water mark begin anew at what is held now.

    A run in this process answers for what it takes, not for what a notebook held before it. Where the kernel does not let it (`clear_refs` of
    proc(5)), the mark stays and the projection with it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def held_memory() -> int:
    """Bytes that this process holds now beyond a program's own: a notebook's arrays, models, what libraries keep."""
    forget_peak()
    return max(0, peak_memory() - PROGRAM_BYTES)


def resident_memory() -> int:
    """Bytes of this process's resident memory now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def settle_allocator(*, computes: bool) -> None:
    """Fix how glibc takes memory from the system and gives it back (mallopt(3)); without effect where there is no glibc.

    Left alone, the threshold of mapped blocks follows the largest block freed, and blocks of pixels and activations then come from
    arenas that keep their holes: resident memory of a run grew by 90 MiB with the image. So it is fixed.

    Where the encoder `computes` on the processor, a layer's activations are freed and asked for again all the time. To fetch their
    pages anew each time took a sixth of ViT-Ti: 64 MiB of them stay, in one arena for all threads, so that they stay once.
    """
    threshold, trim, arenas = -3, -1, -8  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    if computes:
        mallopt(arenas, 1)
        mallopt(trim, 64 * 1024**2)
    mallopt(threshold, 16 * 1024**2)
