"""Pieces decoded in processes of their own: the same tiles, and a process that dies costs one piece at most."""

import errno
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import tests.tiles.test_device_reader as reading
from tests.support.images import make_image, write_pyramid
from tests.tiles.test_isolation import no_process
from tilestream.errors import InterruptedRunError, OutageError, ReadError
from tilestream.sources.base import ImageAddress, SourceOptions
from tilestream.sources.tiff.source import TiffSource
from tilestream.stages.encoding.children import children_memory
from tilestream.tiles.decoding.processes import DecodeProcesses, SharedPixels
from tilestream.tiles.device_decoding import HostDecoder
from tilestream.tiles.device_reader import DeviceTileReader
from tilestream.tiles.read_spec import ReadSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd_create and SOCK_SEQPACKET are Linux's")
TILE = 96


@pytest.fixture(scope="module")
def processes():
    made = DecodeProcesses(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def image():
    return make_image(reading.HEIGHT, reading.WIDTH, seed=3)


def image_of(source):
    return ImageAddress(source.info.address, SourceOptions(), source.info.fingerprint)


def read(source, spec, y, x, decoder):
    with ThreadPoolExecutor(2) as pool:
        return list(DeviceTileReader(source, spec, decoder=decoder, pool=pool, threads=2, batch=16).read(y, x))


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"tile": None}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_same_tiles_and_the_same_failures_as_in_this_process(tmp_path, image, processes, monkeypatch, options, scale):
    monkeypatch.setattr("tilestream.tiles.device_reader.UNIT_PIECES", 3)
    path = write_pyramid(tmp_path / "a.tif", image, levels=1, **{"tile": 128, **options})
    if not options:
        reading.empty(path, 11)
        reading.damage(path, 19, b"\0" * 900)
    source, spec, decoder = TiffSource(str(path), SourceOptions()), ReadSpec(0, 1.0, TILE, scale), HostDecoder("cpu", processes)
    for seed in (1, 2):  # the shared memory is used again, and grows
        y, x = reading.some_tiles(scale, kept=0.5 * seed)
        batches = read(source, spec, y, x, decoder)
        pixels, failed = reading.read_host(source, spec, y, x)
        assert bool(failed) == (not options)
        assert {k: reason for b in batches for k, reason in b.failed.items()} == failed
        reading.assert_equal(reading.by_tile(batches), pixels)


def test_many_slides_one_after_another(tmp_path, image, processes):
    """More than a process keeps open, in memory that it must map anew."""
    for number in range(5):
        path = write_pyramid(tmp_path / f"{number}.tif", np.roll(image, number * 7, axis=1), tile=128, levels=1)
        source, spec = TiffSource(str(path), SourceOptions()), ReadSpec(0, 1.0, TILE, 1.0)
        for _ in range(4):
            found = read(source, spec, *reading.some_tiles(), HostDecoder("cpu", processes))
        reading.assert_equal(reading.by_tile(found), reading.read_host(source, spec, *reading.some_tiles())[0])


def test_a_file_that_was_changed_is_refused(tmp_path, image, processes):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    other = replace(image_of(source), fingerprint="another")
    (found,) = processes.decode(other, 0, np.array([[0, 0]]), 0, SharedPixels(128 * 128 * 3), (1, 128, 128, 3))
    assert isinstance(found, ReadError)
    assert "changed while it was being read" in str(found)


def test_a_file_that_is_gone_is_named(tmp_path, image, processes):
    path = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)
    source = TiffSource(str(path), SourceOptions())
    path.unlink()
    with pytest.raises(OutageError, match=re.escape(f"{path}: its storage does not answer: the file is gone")):
        processes.decode(image_of(source), 0, np.array([[0, 0], [0, 1]]), 0, SharedPixels(2 * 128 * 128 * 3), (2, 128, 128, 3))


def test_a_killed_process_is_replaced_and_nothing_is_lost(tmp_path, image):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made, memory = DecodeProcesses(1), SharedPixels(3 * 128 * 128 * 3)
    places = np.array([[0, 0], [0, 1], [1, 0]])
    for _ in range(2):
        assert made.decode(image_of(source), 0, places, 0, memory, (3, 128, 128, 3)) == [0, 1, 2]
        pixels = memory.bytes.reshape(3, 128, 128, 3).copy()
        child = made._free.queue[0]._process
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        memory.bytes[:] = 0
        assert made.decode(image_of(source), 0, places, 0, memory, (3, 128, 128, 3)) == [0, 1, 2]
        np.testing.assert_array_equal(memory.bytes.reshape(3, 128, 128, 3), pixels)
    made.close()


def test_one_that_cannot_be_replaced_ends_the_run_and_keeps_nobody_waiting(tmp_path, image, monkeypatch):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made, memory = DecodeProcesses(1), SharedPixels(128 * 128 * 3)
    request = image_of(source), 0, np.array([[0, 0]]), 0, memory, (1, 128, 128, 3)
    made._free.queue[0]._process.kill()
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_process(errno.EAGAIN))
        for _ in range(3):
            with pytest.raises(
                InterruptedRunError, match=r"a process that decodes cannot be started on .*: Resource temporarily unavailable\."
            ):
                made.decode(*request)
        with pytest.raises(InterruptedRunError, match=r"cannot be started"):
            DecodeProcesses(1)
    assert made.decode(*request) == [0]
    made.close()


POISON = """
import os, sys
import tilestream.tiles.decoding.processes as module
plain = module._decode
def decode(source, level, row, col, number, out):
    if (row, col) == (1, 0):
        os.abort()
    return plain(source, level, row, col, number, out)
module._decode = decode
module.serve(int(sys.argv[1]))
"""


def test_a_piece_that_kills_its_process_fails_alone(tmp_path, image):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made = DecodeProcesses(1, (sys.executable, "-c", POISON))
    found = made.decode(image_of(source), 0, np.array([[0, 0], [1, 0], [0, 1]]), 0, SharedPixels(3 * 128 * 128 * 3), (3, 128, 128, 3))
    made.close()
    assert [found[0], found[2]] == [0, 2]
    assert "file tile (1, 0): the decoder ended its process, twice" in str(found[1])


def test_processes_end_with_the_one_that_asks(tmp_path):
    code = "from tilestream.tiles.decoding.processes import DecodeProcesses as D; d = D(2); print([c._process.pid for c in d._free.queue], flush=True); import os; os._exit(9)"
    import time

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pids = [int(number) for number in told.stdout.strip("[]\n ").split(",")]
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):  # noqa: PTH110
            return
        time.sleep(0.1)
    pytest.fail("processes outlived the one that started them")


def test_their_memory_is_counted(processes):
    assert children_memory() > 2 * 8 * 1024**2


def policies(made):
    return [os.sched_getscheduler(child._process.pid) for child in made._free.queue]


SERVING = """
import sys
import tilestream.tiles.decoding.processes as module
module.Turns.starved = lambda turns: {}
module.serve(int(sys.argv[1]), yields=sys.argv[2] == module.YIELDS)
"""
PATIENT, STARVING = (SERVING.format(starved) for starved in ("False", "turns._watched"))
"""Processes that never say that they had no turn, however busy the machine is; and such as do while they yield."""


def test_they_leave_their_cores_to_whoever_wakes_up_and_this_process_does_not(tmp_path, image):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made = DecodeProcesses(1, (sys.executable, "-c", PATIENT))
    read(source, ReadSpec(0, 1.0, TILE, 1.0), *reading.some_tiles(), HostDecoder("cpu", made))
    assert policies(made) == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    made.close()


def test_those_that_hardly_have_a_turn_are_replaced_by_others_that_take_theirs(tmp_path, image):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made = DecodeProcesses(2, (sys.executable, "-c", STARVING))
    made._starting.join()
    places, memory = np.array([[0, 0], [0, 1]]), SharedPixels(2 * 128 * 128 * 3)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):  # each of them is asked
            for found in pool.map(lambda _: made.decode(image_of(source), 0, places, 0, memory, (2, 128, 128, 3)), range(8)):
                assert found == [0, 1]
    assert policies(made) == [os.SCHED_OTHER] * 2
    made.close()


def test_one_that_hardly_has_a_turn_goes_on_where_no_other_can_be_started(tmp_path, image, monkeypatch):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made, memory = DecodeProcesses(1, (sys.executable, "-c", STARVING)), SharedPixels(128 * 128 * 3)
    request = image_of(source), 0, np.array([[0, 0]]), 0, memory, (1, 128, 128, 3)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_process(errno.EAGAIN))
        assert [made.decode(*request) for _ in range(3)] == [[0]] * 3
    assert made.decode(*request) == [0]
    assert policies(made) == [os.SCHED_OTHER]
    made.close()


@pytest.mark.slow
def test_next_to_programs_that_want_all_cores_they_take_their_turn(tmp_path, image):
    source = TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)), SourceOptions())
    made, memory = DecodeProcesses(1), SharedPixels(128 * 128 * 3)
    made.decode(image_of(source), 0, np.array([[0, 0]]), 0, memory, (1, 128, 128, 3))
    assert policies(made) == [os.SCHED_IDLE]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    try:
        while os.SCHED_OTHER not in policies(made):  # the time limit of tests ends it
            assert made.decode(image_of(source), 0, np.array([[0, 0]]), 0, memory, (1, 128, 128, 3)) == [0]
    finally:
        for process in busy:
            process.kill()
            process.wait()
        made.close()
