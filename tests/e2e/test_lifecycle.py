"""Signals at each moment of a run, to it alone and to all its processes: 5, words of ours alone, nobody left over, and the same command ends as if nothing had been."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.resuming import dask_workers, ends_equal, start, wait_for_shard, write_config
from tests.support.signals import HEARING, MARK, none_left, unheard

SCHEDULES = {"inline": {}, "two workers": {"scheduler": "local", "workers": 2}, "isolated": {"isolate": True}}

MOMENTS = {"loading": "loading PyTorch", "planning": " on cpu, ", "embedding": "tiles, read from", "finishing": "a: done"}
"""What a run says as a part of it begins, or ends."""

OURS = re.compile(r"\d\d:\d\d:\d\d |tilestream: ")


def resumed(folder, undisturbed):
    """Run the same command to its end, and compare."""
    again = start(folder)
    assert (again.communicate(timeout=300), again.returncode)[1] == 0
    ends_equal(folder / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("moment", "number", "everybody"),
    [
        ("loading", signal.SIGTERM, True),
        ("planning", signal.SIGHUP, True),
        ("embedding", signal.SIGTERM, True),
        ("embedding", signal.SIGHUP, False),
        ("finishing", signal.SIGTERM, True),
        ("finishing", signal.SIGINT, False),
    ],
)
def test_a_signal_at_any_moment_ends_in_order_and_leaves_nobody(tmp_path, undisturbed, schedule, moment, number, everybody):
    write_config(undisturbed[0], tmp_path, "corners", **SCHEDULES[schedule])
    mark = str(tmp_path)
    run = start(tmp_path, **{MARK: mark})
    said = []
    for line in run.stderr:
        said.append(line)
        if MOMENTS[moment] in line:
            break
    (os.killpg if everybody else os.kill)(run.pid, number)
    with run.stderr:
        said += run.stderr.readlines()
    code = run.wait(60)
    assert code == 5 or (code == 0 and moment == "finishing"), "".join(said)
    assert (code == 0) == (not any(line.startswith("tilestream: interrupted") for line in said))
    assert all(OURS.match(line) for line in said), "".join(said)
    none_left(mark)
    resumed(tmp_path, undisturbed[1])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_processes_of_a_run_leave_a_terminals_signals_to_it_and_end_with_it(tmp_path, undisturbed, schedule):
    """Decoders leave SIGTERM to it as well; workers are ended by it, and replaced."""
    import psutil

    write_config(undisturbed[0], tmp_path, **SCHEDULES[schedule] | ({} if schedule == "inline" else {"isolate": True}))
    mark = str(tmp_path)
    run = start(tmp_path, **{MARK: mark})
    wait_for_shard(run, tmp_path)
    children = psutil.Process(run.pid).children(recursive=True)
    workers = {child.pid for child in dask_workers(run)} if schedule == "two workers" else set()
    for child in children:
        assert unheard(child.pid) >= {signal.SIGINT, signal.SIGHUP}, child.cmdline()
        if "isolation" in " ".join(child.cmdline()):
            assert signal.SIGTERM in unheard(child.pid)
    assert len(children) >= {"inline": 0, "two workers": 4, "isolated": 1}[schedule]
    assert len(workers) == (2 if schedule == "two workers" else 0)
    run.kill()
    run.communicate()
    none_left(mark)
    resumed(tmp_path, undisturbed[1])


@pytest.mark.slow
def test_timeout_tells_a_process_and_its_group_and_that_is_one_interrupt(tmp_path, undisturbed):
    write_config(undisturbed[0], tmp_path)
    run = start(tmp_path, through=["timeout", "--preserve-status", "3600"])
    wait_for_shard(run, tmp_path)
    run.terminate()
    said = run.communicate(timeout=60)[1]
    assert (run.returncode, "interrupted twice" in said) == (5, False), said
    assert "planned tiles are kept, and the same command resumes" in said
    resumed(tmp_path, undisturbed[1])


_AT = """
import os, signal, sys
import tilestream.cli as cli
{}
sys.argv[1:] = ["--version"]
from tilestream.__main__ import leave
leave()
"""

KILL = "os.kill(os.getpid(), signal.{})"

PLACES = {
    "before anything": ("sys.meta_path.insert(0, type('F', (), {{'find_spec': staticmethod(lambda name, *_: {kill} if name == 'tilestream.cli.streams' else None)}}))", 5),
    "in the command": ("cli.app = lambda *_, **__: {kill}", 5),
    "in words about an error": (
        "def fail(*_, **__):\n    raise cli.ConfigError('wrong')\ncli.app, cli.fitted = fail, lambda words: {kill}",
        5,
    ),
    "as the process ends": ("import atexit; atexit.register(lambda: {kill})", 0),
}  # fmt: skip


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_before_and_after_the_work_ends_quietly(place, number):
    code, expected = PLACES[place]
    script = _AT.format(code.format(kill=KILL.format(number)))
    done = subprocess.run([*HEARING, sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (expected, "" if expected == 0 else "tilestream: interrupted.\n")
    assert done.stdout.startswith("tilestream ") == (expected == 0)
