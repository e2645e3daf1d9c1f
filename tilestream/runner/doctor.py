"""Does this machine have what a run needs? Each check answers with what it found and, where it fails, what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tilestream import __version__
from tilestream.buffers import counted, gib

SHARED_MEMORY = 256 * 1024**2
"""Bytes of shared memory below which processes that decode may fail."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    good: bool
    words: str
    advice: str = ""


def run_checks() -> list[Check]:
    """All checks, none of which changes anything but a temporary folder."""
    checks: list[Callable[[], Check]] = [
        _tilestream,
        _python,
        _torch,
        _device,
        _openslide,
        _jpeg,
        _zarr,
        _cores,
        _disk,
        _shared_memory,
        _ports,
        _hub,
        _cache,
    ]
    return [*(_guarded(check) for check in checks), *_extras()]


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  # a doctor reports what it meets
        return Check(
            check.__name__.strip("_"),
            good=False,
            words=f"{type(error).__name__}: {error}",
            advice="install tilestream again in a fresh environment",
        )


def _tilestream() -> Check:
    return Check("tilestream", good=True, words=f"{__version__}, from {Path(__file__).parents[1]}")


def _python() -> Check:
    return Check("python", good=sys.version_info >= (3, 11), words=sys.version.split()[0], advice="use Python 3.11 or newer")


def _torch() -> Check:
    import torch

    value = torch.ones(4, 4) @ torch.ones(4, 4)
    return Check("torch", good=bool((value == 4).all()), words=f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Check(
            "device", good=True, words=f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {gib(free)} of {gib(total)} free"
        )
    return Check("device", good=True, words="cpu; no CUDA device")


def _openslide() -> Check:
    import openslide

    return Check("openslide", good=True, words=f"library {openslide.__library_version__}, Python {openslide.__version__}")


def _jpeg() -> Check:
    import numpy as np
    import simplejpeg

    grey = np.full((16, 16, 3), 128, np.uint8)
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey, 90))
    return Check("jpeg", good=bool((abs(back.astype(int) - 128) <= 1).all()), words="libjpeg-turbo decodes what it encodes")


def _zarr() -> Check:
    import numpy as np
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(f"{folder}/a.zarr", shape=(8, 4), chunks=(2, 4), shards=(4, 4), dtype="float16")
        array[:] = np.arange(32).reshape(8, 4)
        same = np.array_equal(zarr.open_array(f"{folder}/a.zarr", mode="r")[:], np.arange(32).reshape(8, 4))
    return Check("zarr", good=same, words=f"{zarr.__version__}, writes and reads shards")


def _cores() -> Check:
    return Check(
        "cores",
        good=True,
        words=f"{len(os.sched_getaffinity(0))} usable, {gib(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory",
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check(
        "disk",
        good=free > 1024**3,
        words=f"{gib(free)} free here",
        advice="less than 1 GiB is left: free some, or write the output elsewhere",
    )


def _shared_memory() -> Check:
    """Processes that decode hand pixels over in it; containers often have 64 MiB."""
    folder = Path("/dev/shm")  # noqa: S108  # where Linux has it
    if not folder.is_dir():
        return Check("shared memory", good=True, words="no /dev/shm here")
    free = shutil.disk_usage(folder).free
    return Check(
        "shared memory", good=free >= SHARED_MEMORY, words=f"{gib(free)} free in {folder}",
        advice=f"less than {gib(SHARED_MEMORY)}: give a container more, e.g. --shm-size=2g, or keep compute.isolate and jpeg workers off",
    )  # fmt: skip


def _ports() -> Check:
    """Workers and the viewer listen on the machine itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return Check("ports", good=True, words=f"free ones can be had, such as {listener.getsockname()[1]}")


def _hub() -> Check:
    """Whether weights behind a gate could be fetched, as far as it shows without the network."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    known = bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()
    offline = ", offline by HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    words = "a token of Hugging Face is there" if known else "no token of Hugging Face: gated encoders need one (hf auth login)"
    return Check("hub login", good=True, words=words + offline)


def _cache() -> Check:
    """Where downloaded weights lie, and what they take."""
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")
    held = [path.name.removeprefix("models--").replace("--", "/") for path in sorted(home.glob("models--*"))] if home.is_dir() else []
    return Check("hub cache", good=True, words=f"{home}: " + (", ".join(held) or "nothing yet"))


def _extras() -> list[Check]:
    extras = {
        "timm": "timm",
        "hf": "transformers",
        "h5": "h5py",
        "hpc": "dask_jobqueue",
        "s3": "obstore",
        "plot": "matplotlib",
        "parquet": "pyarrow",
        "onnx": "onnxruntime",
        "seg": "segmentation_models_pytorch",
        "fit": "openpyxl",
        "geo": "rasterio",
        "dicom": "pydicom",
        "gpu": "nvidia.nvimgcodec",
    }
    return [
        Check(f"extra {name}", good=True, words="installed" if _found(module) else f"not installed (pip install 'tilestream[{name}]')")
        for name, module in extras.items()
    ]


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
