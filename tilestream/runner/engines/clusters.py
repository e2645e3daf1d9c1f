"""Dask clusters: started here, or found by the file that a scheduler wrote."""

from __future__ import annotations

import ast
import importlib
import json
import multiprocessing
import re
import sys
from pathlib import Path
from types import FrameType
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


_GUARDS = frozenset({"__name__", "parent_process", "current_process"})
"""Names by which a script tells whether it is run or imported."""


def check_main_guard(setting: str) -> None:
    """Refuse a run that a script starts as soon as it is imported: the processes of a setting import it, and would start runs without end.

    Raises
    ------
    ConfigError
        With what to write.
    """
    line = _unguarded_line()
    if line is not None or getattr(multiprocessing.current_process(), "_inheriting", False):
        where = f"{_script()}, line {line}" if line is not None else "the script"
        raise ConfigError(
            f"{setting} starts processes, and each of them imports {where}, which would start this run once more. "
            'Put what the script does under `if __name__ == "__main__":`, or leave the work to this process: compute.scheduler inline, compute.isolate false.'
        )


def _script() -> str | None:
    """The file that worker processes import as the main module; None where there is none, as in a notebook or with `python -m package`."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None and name.rpartition(".")[2] == "__main__":
        return None
    return getattr(main, "__file__", None)


def _unguarded_line() -> int | None:
    """The line of the script that is being executed now, where it stands under no guard."""
    script = _script()
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # what the traceback of an error here would show
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_filename == script:
            return None if _is_guarded(Path(script), frame.f_lineno) else frame.f_lineno
        frame = frame.f_back
    return None


def _is_guarded(script: Path, line: int) -> bool:
    """Whether a line of a script stands under an `if` that asks who runs it; where the script cannot be read, it is believed to."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    around = (node for node in ast.walk(tree) if isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or node.lineno))
    return any(_GUARDS & _names(node.test) for node in around)


def _names(test: ast.expr) -> set[str]:
    """Names and attributes in an expression."""
    return {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(test) if isinstance(node, ast.Name | ast.Attribute)}
