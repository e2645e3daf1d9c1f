"""Ctrl-C on a terminal, which reaches every process of the run: words of ours alone, at once, and nothing of the libraries below."""

import os
import signal
import threading

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import start, wait_for_shard, write_config
from tilestream.cli.interrupts import Interrupts
from tilestream.runner.engines.interrupts import interrupts_held


@pytest.mark.parametrize(
    "compute", [{"scheduler": "inline"}, pytest.param({"scheduler": "local", "workers": 2}, marks=pytest.mark.slow)], ids=["inline", "two workers"]
)  # fmt: skip
def test_an_interrupt_of_the_whole_group_says_at_once_what_is_kept_and_nothing_else(tmp_path, compute):
    image = write_pyramid(tmp_path / "a.tif", make_image(1200, 1100, 5), tile=128, levels=1)
    settings = write_config(image, tmp_path, "slow_corners", **compute)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=100)
    assert run.returncode == 5, err
    said = err.splitlines()
    ours = [k for k, line in enumerate(said) if line.startswith("tilestream: interrupted")]
    assert ours[0] < ours[-1] == len(said) - 1
    assert "of 156 planned tiles are kept; ending what is in hand" in said[ours[0]]
    assert said[-1].endswith("of 156 planned tiles are kept, and the same command resumes.")
    assert all(line[2] == line[5] == ":" for k, line in enumerate(said) if k not in ours), (
        err
    )  # each begins with a time of day, as our own log does
    assert tilestream.run(settings).exit_code == 0


@pytest.fixture
def interrupts():
    handler = Interrupts()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield handler
    for number, was in before.items():
        signal.signal(number, was)
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.cancel()


def hold(numbers, done):
    with interrupts_held():
        for number in numbers:
            os.kill(os.getpid(), number)
        done.append("the block went on")


def test_an_interrupt_that_is_held_is_heard_when_the_block_ends(interrupts):
    done = []
    with pytest.raises(KeyboardInterrupt):
        hold([signal.SIGINT], done)
    assert (done, interrupts.count, signal.getsignal(signal.SIGINT)) == (["the block went on"], 1, interrupts)
    with interrupts_held():
        pass
    assert signal.getsignal(signal.SIGTERM) is interrupts


def test_a_second_one_is_heard_at_once(interrupts):
    class Left(BaseException):
        pass

    def leave(why):
        raise Left(why)

    interrupts._leave, done = leave, []
    with pytest.raises(Left, match="interrupted twice"):
        hold([signal.SIGTERM, signal.SIGINT], done)
    assert done == []


def test_only_the_main_thread_holds_interrupts():
    found = []
    before = signal.getsignal(signal.SIGINT)

    def work():
        with interrupts_held():
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
