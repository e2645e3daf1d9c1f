"""Schedulers, workers and batch systems of real processes."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

DASK = [sys.executable, "-m", "distributed.cli.dask_scheduler"], [sys.executable, "-m", "distributed.cli.dask_worker"]
ROOT = Path(__file__).parents[2]


class Processes:
    """A scheduler, which writes the file `scheduler.json`, and workers that join it and leave it."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.scheduler = self._start([*DASK[0], "--scheduler-file", str(self.file), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"])
        self.workers = []
        deadline = time.monotonic() + 60
        while not (self.file.exists() and self.file.read_text().endswith("}")) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _start(self, command):
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self.env)

    def join(self, count):
        """Start workers; they come when they are ready."""
        joined = [
            "--scheduler-file",
            str(self.file),
            "--host",
            "127.0.0.1",
            "--nthreads",
            "3",
            "--no-nanny",
            "--no-dashboard",
            "--death-timeout",
            "60",
        ]
        self.workers += [self._start([*DASK[1], *joined]) for _ in range(count)]

    def leave(self, count):
        """Kill workers, as a machine that is switched off would."""
        for process in self.workers[:count]:
            process.kill()
            process.wait(20)
        del self.workers[:count]

    def close(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
        for process in [*self.workers, self.scheduler]:
            process.wait(20)


@contextmanager
def processes(folder, workers):
    """A scheduler with so many workers on their way."""
    found = Processes(folder)
    try:
        found.join(workers)
        yield found
    finally:
        found.close()


SBATCH = """#!{python}
import json, pathlib, subprocess, sys
here = pathlib.Path(__file__).parent
if (here / "refuses").exists():
    sys.exit("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified")
job = subprocess.Popen(["bash", sys.argv[-1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
number = job.pid
(here / f"job-{{number}}").write_text(json.dumps({{"pid": job.pid, "script": open(sys.argv[-1]).read()}}))
print("Submitted batch job", number)
"""

SCANCEL = """#!{python}
import json, os, pathlib, signal, sys
here = pathlib.Path(__file__).parent
for number in sys.argv[1:]:
    try:
        os.killpg(json.loads((here / f"job-{{number}}").read_text())["pid"], signal.SIGKILL)
    except ProcessLookupError:
        pass
    (here / f"cancelled-{{number}}").touch()
"""


class Slurm:
    """A batch system made of two commands in a folder: a job is a process of this machine, and what was submitted stays on record."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
            (folder / name).write_text(text.format(python=sys.executable))
            (folder / name).chmod(0o755)

    @property
    def jobs(self):
        """What was submitted, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("job-*"))]

    @property
    def cancelled(self):
        return len(list(self.folder.glob("cancelled-*")))
