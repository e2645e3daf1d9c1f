"""How workers are set up: from the config to their settings, and what they measure of the encoder in return."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from tilestream.config.schema import Compute, Config
from tilestream.config.vectors.pool import LEARNED
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.heads.address import PROGRAM, boxed, is_factory
from tilestream.encoders.hub import is_hub_id
from tilestream.sources.base import PixelKind
from tilestream.stages.hardware import count_cuda

EXACT_BATCH = 16
"""Tiles a batch in exact mode: rows of a matrix product differ in their last bit between batches of 1, 7 and 16."""

PROCESSES_FROM = 4
"""Decode threads from which on pieces for a device are decoded in processes: fewer are served by one interpreter."""


def worker_settings(config: Config) -> WorkerSettings:
    """How workers are set up: with `auto`, cores are shared out between the workers of this machine."""
    compute = config.compute
    exact = config.context is not None and config.context.exact
    local = compute.scheduler.kind in ("inline", "local")
    cores = max(1, len(os.sched_getaffinity(0)) // (worker_count(compute) if compute.scheduler.kind == "local" else 1))
    threads = cores if compute.threads == "auto" else compute.threads
    return WorkerSettings(
        encoder=config.encoder.name,
        weights=_weights_address(config.encoder.weights),
        args=json.dumps(dict(config.encoder.args), sort_keys=True),
        precision="fp32" if exact else config.encoder.precision,
        device=compute.device,
        tile=config.tiles.size,
        compile=False if exact else None if compute.compile == "auto" else compute.compile,
        isolate=compute.isolate,
        decode=config.source.decode,
        batch=EXACT_BATCH if exact else None if compute.batch_size == "auto" else compute.batch_size,
        threads=threads,
        decode_processes=uses_processes(threads) and not config.source.valued,
        compute_threads=cores if local else None,
        exact=exact,
        bands=config.source.valued,
    )


def uses_processes(threads: int) -> bool:
    """Whether this many decoders of pieces for a device are processes."""
    return sys.platform == "linux" and threads >= PROCESSES_FROM


def absolute(address: str) -> str:
    """A local path made absolute; a URL as it is."""
    return address if "://" in address else os.path.abspath(address)  # noqa: PTH100  # keeps the text of links


def _weights_address(weights: str | None) -> str | None:
    """As workers can find it: a path made absolute, a repository of the hub as it is."""
    return weights if weights is None or is_hub_id(weights) else absolute(weights)


def model_address(model: str) -> str:
    """A head's model as workers can find it: a path made absolute, a repository of the hub, `module:factory` and one of the package as they are."""
    if model.startswith(PROGRAM):
        return PROGRAM + absolute(model.removeprefix(PROGRAM))
    return model if is_hub_id(model) or is_factory(model) or boxed(model) else absolute(model)


def untrained_parts(config: Config, facts: EncoderFacts) -> list[str]:
    """The parts of the line whose weights are random."""
    parts = [f"encoder {facts.name}"] if facts.untrained else []
    if config.context is not None and config.context.weights is None:
        parts.append("context")
    return parts + [f"pool {pool.name}" for pool in config.pool.every if pool.name in LEARNED and pool.weights is None]


Digests = tuple[tuple[str, str], ...]
"""SHA-256 of files, by path."""


@dataclass(frozen=True)
class Pinned:
    """What the first worker of a run found, and every other one must find as well: its rows would differ otherwise."""

    weights_sha256: str
    matrix_units: bool
    """Whether bf16 was chosen because the device has matrix units for it."""
    cpu_capability: str | None
    """The instruction set of the CPU's kernels, as torch names it, in exact mode."""
    versions: tuple[tuple[str, str], ...] = ()
    """Versions of what rows are computed with, by name."""
    code_sha256: str | None = None
    """Over the code of the module of `module:factory`."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is set up; equal settings share one encoder."""

    encoder: str
    weights: str | None
    args: str
    """Arguments of the factory, as JSON: hashable."""
    precision: str
    device: str
    tile: int
    batch: int | None
    """Tiles a batch; None takes what suits the device."""
    threads: int
    compile: bool | None
    """Whether the encoder is compiled on CUDA; None for slides that begin when it pays and is ready."""
    isolate: bool
    """Whether tiles are read in a child process."""
    decode: str
    """Where JPEG is decoded: auto, cpu or gpu."""
    decode_processes: bool
    """Whether pieces for a device are decoded in processes of their own, as many as `threads`."""
    compute_threads: int | None
    """Threads of torch within one operation; None leaves torch's own choice."""
    exact: bool = False
    """Whether results have the same bits whoever computes them."""
    bands: int = 0
    """Bands whose values a tile holds; 0 where tiles are colours."""
    pinned: Pinned | None = None
    """None where the worker is the first of its run, and chooses what the config leaves open."""

    @property
    def pixel(self) -> PixelKind:
        """What a pixel of a tile holds."""
        return PixelKind(self.bands)

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is built from."""
        return EncoderSpec(name=self.encoder, weights=self.weights, args=json.loads(self.args))


LANES = 2
"""Shards that a worker reads at once: one computes while the next one reads."""

TASKS = LANES + 2
"""Tasks that a worker has in hand at once: those in lanes, one that is written, and one that a device still computes and that is read by then."""


@dataclass(frozen=True)
class EncoderFacts:
    """What a worker measured of the encoder and of itself before any pixel was read."""

    name: str
    dim: int
    tokens: int
    """Tokens a tile; 1 where the encoder gives one vector."""
    tile_size: int | None
    mpp: float | None
    parameters: int
    digest: str
    """SHA-256 over the weights."""
    untrained: bool
    peak_bytes: int
    """High-water mark of the worker's resident memory after one batch: interpreter, libraries, weights, activations."""
    device: str
    """Where it runs, e.g. `cpu` or `cuda:0 (NVIDIA H200)`."""
    precision: str
    """fp32, bf16 or fp16."""
    batch: int
    """Tiles a batch."""
    threads: int
    """Decode threads a worker."""
    mpp_range: tuple[float, float] | None = None
    """Least and greatest µm/px that it serves, and 5 % beyond; None: `mpp` alone."""
    processes: int = 0
    """Decoding processes a worker; 0 where its threads decode."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the encoder runs."""
    vector: str | None = None
    """What the vector of a tile is; None where the encoder does not say."""
    cpu_capability: str | None = None
    """The instruction set of the CPU's kernels, where the output depends on it: in exact mode."""
    tile_seconds: float | None = None
    """Seconds a tile on a CUDA device, without compiling."""
    seconds: tuple[tuple[str, float], ...] = ()
    """What the worker that was asked first took for building it, in order."""
    takes_larger_tiles: bool = False
    """Whether the encoder brings tiles above `tile_size` to it."""
    bands: tuple[str, ...] = ()
    """The bands that it takes, in order, by common name or wavelength; empty where it takes colours, or does not say which."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides rows and only the built encoder says. In fp16, `beyond_range` computes the tiles that leave its range."""
        wide = {"beyond_range": "fp32"} if self.precision == "fp16" else {}
        return {"precision": self.precision, **wide, "weights_sha256": self.digest, "dim": self.dim, "vector": self.vector}


def worker_count(compute: Compute) -> int:
    """Workers that we start: as said, else one a GPU, else one."""
    if compute.workers != "auto":
        return int(compute.workers)
    return max(1, count_cuda()) if compute.device in ("auto", "cuda") else 1


def works_here(compute: Compute) -> bool:
    """Whether this process is the run's one worker: so it was asked for, or nothing was said of workers and there is one device."""
    return compute.scheduler.kind == "inline" or (compute.scheduler.stays_here(compute.workers) and worker_count(compute) == 1)
