"""Commands that hear signals as they would on a terminal, whatever the process that runs the tests ignores: nohup and background jobs hand that down."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

_HEAR = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.execvp(sys.argv[1], sys.argv[1:])
"""

HEARING = [sys.executable, "-IS", "-c", _HEAR]
"""What goes before a command; the process stays the same."""

MARK = "TILESTREAM_TEST_MARK"
"""What names, in the environment, the processes of one command."""


def marked(mark):
    """Processes that live and bear a mark, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def none_left(mark, seconds=30):
    """Wait until no process bears a mark."""
    deadline = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.05)


def unheard(pid):
    """Signals that a process ignores or has blocked, by what the system says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = dict(line.split(":\t") for line in lines if line.startswith(("SigBlk", "SigIgn")))
    both = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
    return {number for number in signal.Signals if both >> (number - 1) & 1}


def shell(command, folder, **environment):
    """A line of bash, and what it said on the streams that it leaves open; encoders of the tests are found from any folder."""
    return subprocess.run(
        [*HEARING, "bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
