"""Writers that die at any system call of a commit leave a store that ends byte-equal."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("first", "step", "count"),
    [(5, 241, 12), pytest.param(1, 7, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["some", "many"],
)
@pytest.mark.slow
def test_writers_that_die_at_a_system_call_leave_a_store_that_ends_equal(tmp_path, first, step, count):
    command = [sys.executable, "-m", "tests.support.dying_writers", str(tmp_path), *map(str, (first, step, count))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= (200 if step == 7 else 8)
