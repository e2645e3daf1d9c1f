"""Ctrl-C on a terminal, and its end, which reach every process of the run: words of ours alone, at once, and nothing of the libraries below."""

import contextlib
import os
import signal
import threading
from types import SimpleNamespace

import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import start, wait_for_shard, write_config
from tilestream.cli.interrupts import Interrupts, raise_again, say_when_interrupted
from tilestream.runner.engines.interrupts import interrupts_held


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    "compute", [{"scheduler": "inline"}, pytest.param({"scheduler": "local", "workers": 2}, marks=pytest.mark.slow)], ids=["inline", "two workers"]
)  # fmt: skip
def test_an_interrupt_of_the_whole_group_says_at_once_what_is_kept_and_nothing_else(tmp_path, compute, number):
    image = write_pyramid(tmp_path / "a.tif", make_image(1200, 1100, 5), tile=128, levels=1)
    settings = write_config(image, tmp_path, "slow_corners", **compute)
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    os.killpg(run.pid, number)
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
def heard():
    """A hang-up is heard, whether or not it is where the tests run; what was is there again at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    yield
    for number, was in before.items():
        signal.signal(number, was)


@pytest.fixture
def interrupts(heard, monkeypatch):
    """What hears signals, each for itself however soon it comes."""
    monkeypatch.setattr("tilestream.cli.interrupts.AT_ONCE", -1.0)
    handler = Interrupts().__enter__()
    yield handler
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.cancel()


def hold(numbers, done):
    with interrupts_held():
        for number in numbers:
            os.kill(os.getpid(), number)
        done.append("the block went on")


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGHUP], [signal.SIGHUP] * 3, [signal.SIGTERM, signal.SIGHUP]])
def test_an_interrupt_that_is_held_is_heard_when_the_block_ends_and_a_hang_up_behind_it_is_no_second_one(interrupts, numbers):
    done = []
    with pytest.raises(KeyboardInterrupt):
        hold(numbers, done)
    os.kill(os.getpid(), signal.SIGHUP)
    hold([signal.SIGHUP], [])
    assert (done, interrupts.count, signal.getsignal(signal.SIGINT)) == (["the block went on"], 1, interrupts)
    with interrupts_held():
        pass
    assert signal.getsignal(signal.SIGTERM) is interrupts


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_is_heard_at_once(interrupts, first, second):
    class Left(BaseException):
        pass

    def leave(why):
        raise Left(why)

    interrupts._leave, done = leave, []
    with pytest.raises(Left, match="interrupted twice"):
        hold([first, second], done)
    assert done == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_is_told_twice_at_once_is_one(interrupts, monkeypatch, second):
    monkeypatch.setattr("tilestream.cli.interrupts.AT_ONCE", 3600.0)
    done = []
    with pytest.raises(KeyboardInterrupt):
        hold([signal.SIGTERM, second, second], done)
    os.kill(os.getpid(), second)
    assert (done, interrupts.count) == (["the block went on"], 1)


def test_an_interrupt_that_python_could_not_raise_comes_once_more_and_is_no_second_one(interrupts):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    raise_again(SimpleNamespace(exc_type=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(60)
    assert interrupts.count == 1


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored_and_the_others_are_heard(heard, monkeypatch, ignored):
    monkeypatch.setattr("tilestream.cli.interrupts.AT_ONCE", 3600.0)
    signal.signal(ignored, signal.SIG_IGN)
    other = signal.SIGTERM if ignored != signal.SIGTERM else signal.SIGINT
    done = []
    with Interrupts() as handler:
        say_when_interrupted(lambda: "all")
        os.kill(os.getpid(), ignored)
        hold([ignored], done)
        assert (done, handler.count, handler.kept()) == (["the block went on"], 0, "all")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), other)
        raise_again(SimpleNamespace(exc_type=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(60)
        assert (handler.count, signal.getsignal(ignored)) == (1, signal.SIG_IGN)
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("compute", [{}, {"scheduler": "local", "workers": 2}], ids=["inline", "two workers"])
def test_a_run_in_the_background_of_a_script_hears_no_ctrl_c_and_ends_in_order_when_told_to(tmp_path, compute):
    image = write_pyramid(tmp_path / "a.tif", make_image(1200, 1100, 5), tile=128, levels=1)
    write_config(image, tmp_path, "slow_corners", **compute)
    run = start(tmp_path, through=["bash", "-c", "trap '' INT; exec \"$@\"", "bash"])
    wait_for_shard(run, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    wait_for_shard(run, tmp_path)
    assert run.poll() is None
    run.terminate()
    _, err = run.communicate(timeout=100)
    assert run.returncode == 5, err
    assert err.splitlines()[-1].endswith("of 156 planned tiles are kept, and the same command resumes.")


@pytest.mark.parametrize("full", [True, False])
def test_an_interrupt_waits_for_nobody_who_reads_its_words(interrupts, monkeypatch, full):
    interrupts.kept = lambda: "all"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    if full:
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, bytes(4096)):
                pass
    os.set_blocking(writer, True)
    stderr = os.dup(2)
    os.dup2(writer, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.dup2(stderr, 2)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert (b"interrupted: all" in said.read()) == (not full)
    os.close(stderr)


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
