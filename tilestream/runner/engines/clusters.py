"""Dask clusters: started here, or found by the file that a scheduler wrote."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import logging
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tilestream.config.compute import Compute, SchedulerSpec
from tilestream.config.load import secret_texts
from tilestream.config.local_files import read_small_file
from tilestream.errors import HIDDEN, LONGEST_REASON, ConfigError
from tilestream.runner.engines.fork_server import begin_server
from tilestream.runner.engines.interrupts import interrupts_held
from tilestream.stages.worker_settings import TASKS, worker_count

ANSWER = 5.0
"""Seconds within which a scheduler must take a connection."""

WRITING, LOOK = 3.0, 0.1
"""Seconds that a scheduler may take to write its file, and between looks at it."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that was started here or found, and this process's connection to it."""

    client: Any
    started: Any = None
    """The cluster itself, where it was started here."""
    expected: int | None = None
    """Workers that were asked for; None where others start them."""
    most: int | None = None
    """Workers that it may start by itself once there is work for them; None where it starts none."""

    def close(self) -> None:
        """Let go of it; what was started here ends."""
        try:
            with interrupts_held():  # distributed would leave a coroutine behind, and say so
                self.client.close()
            if self.started is not None:
                self._end_started()
        finally:
            _hush(on=False)

    def _end_started(self) -> None:
        nannies = logging.getLogger("distributed.nanny")
        level = nannies.level
        nannies.setLevel(logging.ERROR)  # that a worker in the middle of a batch had to be killed is no news any more
        try:
            self.started.close()
        finally:
            nannies.setLevel(level)


CONNECTIONS = ("distributed.client", "distributed.batched")
"""Logs that tell of a lost connection by the page: the run says itself, in a line, what became of it."""


def _is_news(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], OSError | asyncio.CancelledError)


def _hush(*, on: bool) -> None:
    for name in CONNECTIONS:
        log = logging.getLogger(name)
        log.addFilter(_is_news) if on else log.removeFilter(_is_news)


def open_cluster(compute: Compute) -> Cluster:
    """The cluster that `compute.scheduler` asks for; its workers may still be on their way.

    Raises
    ------
    ConfigError
        It cannot be reached or started.
    """
    import dask
    import distributed

    _hush(on=True)
    spec = compute.scheduler
    if spec.kind in ("address", "file"):
        return Cluster(_connect(spec))
    if spec.kind == "local":
        try:
            started = _start_local_cluster(worker_count(compute))
        except Exception as error:  # whatever keeps processes of a library's from starting
            room = (
                f"Make room in memory and in {dask.config.get('temporary-directory') or tempfile.gettempdir()}, where they put their files"
            )
            way = "Install what is missing" if isinstance(error, ImportError) else room
            raise ConfigError(
                f"compute.scheduler: the {worker_count(compute)} worker processes of this machine do not start: {first_line(error)}. {way}, or set it to inline."
            ) from error
    else:
        started = _start_class(spec, None if compute.workers == "auto" else int(compute.workers))
    try:
        client = distributed.Client(started, set_as_default=False)
        plan = getattr(started, "plan", ())
        most = None if spec.adapt is None else spec.adapt.maximum
        return Cluster(client, started, most or len(plan) or None, most)
    except BaseException:
        started.close()
        raise


def _connect(spec: SchedulerSpec) -> Any:
    """A client of a scheduler that is running already. Raises ConfigError, soon where nothing answers."""
    import distributed

    address = spec.address or address_in_file(spec.path or "")
    try:
        _expect_greeting(address)
        return distributed.Client(address, set_as_default=False, timeout=2 * ANSWER)
    except (OSError, ValueError) as error:
        where = address if spec.path is None else f"{address}, which {spec.path} names"
        raise ConfigError(
            f"compute.scheduler: no cluster answers at {where}: {first_line(error)}. Start one, or set it to local."
        ) from error


def _expect_greeting(address: str) -> None:
    """Connect to a scheduler as anybody may, and hear its first bytes. distributed would try for half a minute, and for ever where nobody speaks."""
    match = re.fullmatch(r"(tcp|tls)://\[?([^\s/]+?)\]?:(\d+)/?", address)
    if match is None:
        return
    with socket.create_connection((match[2], int(match[3])), timeout=ANSWER) as connection:
        if match[1] == "tcp" and not connection.recv(1):
            raise ConnectionError("what listens there is no scheduler")


def _start_class(spec: SchedulerSpec, workers: int | None) -> Any:
    """The cluster of a class of dask, with `workers` on their way; None: as many as its own arguments say, else one."""
    module, _, name = (spec.cls or "").rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"compute.scheduler.class: {spec.cls} cannot be imported ({error}). Install its package, for dask_jobqueue pip install 'tilestream[hpc]', or put its folder on PYTHONPATH."
        ) from error
    job, args = getattr(factory, "job_cls", None), dict(spec.args)
    command = shlex.split(getattr(job, "submit_command", None) or "")
    if command and shutil.which(command[0]) is None:
        raise ConfigError(
            f"compute.scheduler.class: {spec.cls} submits jobs with {command[0]}, which is not on the PATH of {platform.node()}. "
            "Start the run where jobs are submitted, or set compute.scheduler to local."
        )
    if job is not None:  # it would start them without telling whether that went well
        workers = workers or args.pop("n_workers", None)
        args["n_workers"] = 0
    cluster = None
    try:
        cluster = factory(**args)
        if spec.adapt is not None:
            cluster.adapt(minimum=spec.adapt.minimum, maximum=spec.adapt.maximum)
        elif job is not None:
            _submit_jobs(cluster, workers or 1)
        elif workers is not None or not getattr(cluster, "plan", (1,)):
            cluster.scale(workers or 1)
    except Exception as error:  # noqa: BLE001  # of a library that we do not know
        if cluster is not None:
            _close_failed(cluster)
        words = first_line(error)
        for secret in sorted(secret_texts(spec.args), key=len, reverse=True):
            words = words.replace(secret, HIDDEN)
        raise ConfigError(f"compute.scheduler: {spec.cls} does not start: {words}") from None  # what it came from may hold the arguments
    return cluster


def _close_failed(cluster: Any) -> None:
    """Close a cluster some of whose jobs were refused: left alone, it would insist that each was closed."""
    from distributed.core import Status

    for job in getattr(cluster, "workers", {}).values():
        if job.status == Status.created:
            job.status = Status.failed
    cluster.close()


def _submit_jobs(cluster: Any, workers: int) -> None:
    """Have a cluster of a batch system submit the jobs for so many workers, and raise what that raised: `scale` keeps it for itself."""
    while len(cluster.plan) < workers:
        cluster.worker_spec.update(cluster.new_worker_spec())
    cluster.sync(cluster._correct_state)  # noqa: SLF001  # there is no other way to learn of it


def first_line(error: BaseException) -> str:
    """An error of a foreign library on one line, with what it came from."""
    words = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
    return words if error.__cause__ is None else f"{words} ({first_line(error.__cause__)})"


def address_in_file(path: str) -> str:
    """The address of a scheduler in the file that it wrote. Raises ConfigError: distributed would wait for ever for a file that is not there.

    A file that is no JSON is looked at again for `WRITING` seconds: a scheduler that has just been started may be in the middle of it.
    """
    until = time.monotonic() + WRITING
    while True:
        data = read_small_file(path, "compute.scheduler", "Start the scheduler first: dask scheduler --scheduler-file FILE.")
        try:
            address = json.loads(data)["address"]
            break
        except ValueError as error:
            if time.monotonic() > until:
                raise _no_address(path) from error
        except (TypeError, KeyError, RecursionError) as error:
            raise _no_address(path) from error
        time.sleep(LOOK)
    if not isinstance(address, str) or not re.fullmatch(r"\w+://\S+", address):
        raise ConfigError(
            f"compute.scheduler: {path} is not a scheduler's file: its address is {str(address)[:80]!r}. Start the scheduler again."
        )
    return address


def _no_address(path: str) -> ConfigError:
    return ConfigError(f"compute.scheduler: {path} is not a scheduler's file: it has no address. Start the scheduler again.")


def _start_local_cluster(workers: int) -> Any:
    """Worker processes of this machine that take work from this process alone.

    Whoever reaches a scheduler or a worker of dask may have it run any code, and each user of the machine reaches its ports: all connections
    are TLS with a key and a certificate made for this run, which both sides must show, and which never lie on a disk for longer than it takes to load them.
    That costs 0.1 s at the start of a run and 0.5 ms or less a task. No pages about tasks are served.
    """
    import dask
    import distributed

    chosen: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    if sys.platform == "linux":
        # Workers fork from a server that has imported what they need, without threads and CUDA: on busy cores two were ready in 18 s where two
        # that imported for themselves took 32; they ended in 0.2 s, where the others were killed after 4.
        chosen["distributed.worker.multiprocessing-method"] = "forkserver"
        begin_server()
        distributed.utils._forkserver_preload_set = True  # noqa: SLF001  # else it has its own list, and imports all of it here as well
    with dask.config.set(chosen):
        # The nanny's own memory limit is off: the plan refuses what does not fit, and a kill would only repeat the shard.
        # Left alone, the scheduler would open port 8787 of every address, for one run a machine.
        return distributed.LocalCluster(
            n_workers=workers, threads_per_worker=TASKS, processes=True, memory_limit=None, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}, security=distributed.Security.temporary(), protocol="tls://",
            env=dict(os.environ),  # as it is now: the server has that of this process's first run
        )  # fmt: skip


_GUARDS = frozenset({"__name__", "parent_process", "current_process"})
"""Names by which a script tells whether it is run or imported."""


def check_main_guard() -> None:
    """Refuse a run that a script starts as soon as it is imported: worker processes import it, and would start runs without end.

    Raises
    ------
    ConfigError
        With what to write.
    """
    line = _unguarded_line()
    if line is not None or getattr(multiprocessing.current_process(), "_inheriting", False):
        where = f"{_script()}, line {line}" if line is not None else "the script"
        raise ConfigError(
            f"compute.scheduler: local starts processes, and each of them imports {where}, which would start this run once more. "
            'Put what the script does under `if __name__ == "__main__":`, or leave the work to this process: compute.scheduler inline.'
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
