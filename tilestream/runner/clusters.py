"""Dask clusters: started here, or found by the file that a scheduler wrote."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from tilestream.config.local_files import read_small_file
from tilestream.config.schema import SchedulerSpec
from tilestream.errors import ConfigError
from tilestream.stages.worker_settings import LANES


def start_cluster(spec: SchedulerSpec, workers: int) -> Any:
    """The cluster that `compute.scheduler` asks for, with so many workers on their way. Raises ConfigError."""
    if spec.kind == "local":
        return _start_local_cluster(workers)
    module, _, name = (spec.cls or "").rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"compute.scheduler.class: {spec.cls} cannot be imported: {error}.") from error
    cluster = factory(**spec.args)
    cluster.scale(workers)
    return cluster


def address_in_file(path: str) -> str:
    """The address of a scheduler in the file that it wrote. Raises ConfigError: distributed would wait for ever for a file that is not there."""
    data = read_small_file(path, "compute.scheduler", "Start the scheduler first: dask scheduler --scheduler-file FILE.")
    try:
        address = json.loads(data)["address"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"compute.scheduler: {path} is not a scheduler's file: it has no address. Start the scheduler again.") from error
    if not isinstance(address, str) or not re.fullmatch(r"\w+://\S+", address):
        raise ConfigError(
            f"compute.scheduler: {path} is not a scheduler's file: its address is {str(address)[:80]!r}. Start the scheduler again."
        )
    return address


def _start_local_cluster(workers: int) -> Any:
    """Worker processes of this machine that take work from this process alone.

    Whoever reaches a scheduler or a worker of dask may have it run any code, and each user of the machine reaches its ports: all connections
    are TLS with a key and a certificate made for this run, which both sides must show, and which never lie on a disk for longer than it takes to load them.
    That costs 0.1 s at the start of a run and 0.5 ms or less a task. No pages about tasks are served.
    """
    import dask
    import distributed

    unserved: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(unserved):
        # The nanny's own memory limit is off: the plan refuses what does not fit, and a kill would only repeat the shard.
        # Left alone, the scheduler would open port 8787 of every address, for one run a machine.
        return distributed.LocalCluster(
            n_workers=workers, threads_per_worker=LANES + 1, processes=True, memory_limit=None, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}, security=distributed.Security.temporary(), protocol="tls://",
        )  # fmt: skip
