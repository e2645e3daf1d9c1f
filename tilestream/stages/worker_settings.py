"""From the config to how workers are set up."""

from __future__ import annotations

import json
import os
import sys

from tilestream.config.schema import Config
from tilestream.encoders.hub import is_hub_id
from tilestream.runner.executors import worker_count
from tilestream.runner.slide_plan import EncoderFacts
from tilestream.stages.worker import WorkerSettings

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
        decode_processes=sys.platform == "linux" and threads >= PROCESSES_FROM,
        compute_threads=cores if local else None,
    )


def absolute(address: str) -> str:
    """A local path made absolute; a URL as it is."""
    return address if "://" in address else os.path.abspath(address)  # noqa: PTH100  # keeps the text of links


def _weights_address(weights: str | None) -> str | None:
    """As workers can find it: a path made absolute, a repository of the hub as it is."""
    return weights if weights is None or is_hub_id(weights) else absolute(weights)


def untrained_parts(config: Config, facts: EncoderFacts) -> list[str]:
    """The parts of the line whose weights are random."""
    parts = [f"encoder {facts.name}"] if facts.untrained else []
    if config.context is not None and config.context.weights is None:
        parts.append("context")
    if config.pool.name in ("gated_attention", "queries") and config.pool.weights is None:
        parts.append(f"pool {config.pool.name}")
    return parts
