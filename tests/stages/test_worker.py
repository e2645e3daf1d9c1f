"""Tiles through a worker: whichever way they are read, and whatever is closed early."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import numpy as np
import pytest

from tests.support.encoders import Corners
from tests.support.images import make_image, write_pyramid
from tests.support.rasters import write_raster
from tilestream.errors import ConfigError, InterruptedRunError
from tilestream.sources import open_image
from tilestream.sources.base import SourceOptions
from tilestream.sources.openslide import OpenSlideSource
from tilestream.sources.tiff.source import TiffSource
from tilestream.stages import worker as worker_module
from tilestream.stages.clock import Clock
from tilestream.stages.encoding.reading import DeviceReading
from tilestream.stages.encoding.settled import settle
from tilestream.stages.shares import RESULTS
from tilestream.stages.slide_task import STOP
from tilestream.stages.worker import Worker, worker_for
from tilestream.stages.worker_settings import LANES, WorkerSettings
from tilestream.tiles.read_spec import ReadSpec


def settings(**changes):
    plain = {
        "encoder": "tests.support.encoders:corners", "weights": None, "args": "{}", "precision": "fp32", "device": "cpu", "tile": 96,
        "batch": 8, "compile": None, "isolate": False, "threads": 2, "decode": "auto", "decode_processes": False, "compute_threads": None,
    }  # fmt: skip
    return WorkerSettings(**plain | changes)


@pytest.fixture
def path(tmp_path):
    return str(write_pyramid(tmp_path / "a.tif", make_image(500, 700, 1), tile=128, levels=1))


def embed(worker, source, clock):
    y, x = (a.ravel().astype(np.int64) for a in np.mgrid[0:500:96, 0:700:96])
    out = np.full((len(y), 12), np.nan, np.float32)
    with closing(worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0), y, x, clock)) as parts:
        for part in parts:
            assert not part.failed
            out[part.index] = part.out
    return out


@pytest.mark.parametrize("make_source", [TiffSource, OpenSlideSource])
def test_tiles_gathered_on_the_device_give_the_same_embeddings(path, make_source):
    worker, clock = Worker(settings()), Clock()
    source = make_source(path, SourceOptions())
    expected = embed(worker, source, clock)
    assert np.isfinite(expected).all()
    worker.reading = DeviceReading(worker.reading, worker.device, None)  # as on CUDA
    for _ in range(2):
        np.testing.assert_array_equal(embed(worker, source, clock), expected)
    assert set(clock.seconds) == {"read", "wait", "compute"}


def test_tiles_of_bands_are_made_on_the_host_for_a_device_too(tmp_path):
    raster = write_raster(tmp_path / "b.tif", np.random.default_rng(0).integers(0, 5000, (500, 700, 5)).astype(np.uint16))
    source = open_image(raster, channels=(0, 2, 4), normalise={"mean": [1000, 2000, 3000], "std": [500, 600, 700]})
    worker = Worker(settings(encoder="tests.support.encoders:band_corners", args='{"bands": 3}', bands=3))
    y, x = np.array([0, 250, 450]), np.array([0, 333, 650])

    def rows():
        out = np.full((3, 15), np.nan, np.float32)
        with closing(worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0, source.pixel), y, x, Clock())) as parts:
            for part in parts:
                out[part.index] = part.out
        return out

    on_host = rows()
    assert np.isfinite(on_host).all()
    worker.reading = DeviceReading(worker.reading, worker.device, None)  # as on CUDA
    np.testing.assert_array_equal(rows(), on_host)


def test_a_batch_that_is_given_up_leaves_the_worker_usable(path):
    worker, source = Worker(settings()), TiffSource(path, SourceOptions())
    worker.reading = DeviceReading(worker.reading, worker.device, None)
    y = x = np.zeros(40, np.int64)
    with closing(worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0), y, x, Clock())) as parts:
        next(parts)
    assert np.isfinite(embed(worker, source, Clock())).all()


@pytest.mark.parametrize("make_source", [TiffSource, OpenSlideSource])
@pytest.mark.parametrize("device", [False, True])
def test_the_next_list_is_read_once_this_ones_tiles_lie_on_a_device_and_elsewhere_once_they_are_computed(path, device, make_source):
    """Tiles that are made on the host take the memory of their lane, on whatever device they are computed."""
    worker, source = Worker(settings(batch=64)), make_source(path, SourceOptions())
    on_device = device and make_source is TiffSource
    if device:
        worker.reading = DeviceReading(worker.reading, worker.device, None)
    y, x = (a.ravel().astype(np.int64) for a in np.mgrid[0:500:16, 0:700:16])
    read = threading.Event()

    def all_are_read(leave):
        leave()
        read.set()

    with worker.lane() as leave:
        tiles = worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0), y, x, Clock(), when_read=lambda: all_are_read(leave))
        with closing(tiles) as parts:
            assert not read.is_set()
            assert len(next(parts).index)
            assert worker.lanes._value == LANES - 1  # some twenty batches are not read yet
            rest = list(parts)
            assert len(rest) > 2 * LANES
            assert read.is_set() == on_device
            assert worker.lanes._value == LANES - (not on_device)
    assert worker.lanes._value == LANES


def test_many_lists_at_once_each_give_their_own_rows(path):
    worker, source = Worker(settings()), TiffSource(path, SourceOptions())
    expected = embed(worker, source, Clock())
    worker.reading = DeviceReading(worker.reading, worker.device, None)

    def one(_):
        out, (y, x) = np.full_like(expected, np.nan), (a.ravel().astype(np.int64) for a in np.mgrid[0:500:96, 0:700:96])
        with (
            worker.lane() as leave,
            closing(worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0), y, x, Clock(), when_read=leave)) as parts,
        ):
            for part in parts:
                out[part.index] = part.out
        return out

    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(one, range(24)):
            np.testing.assert_array_equal(found, expected)
    assert worker.lanes._value == LANES


def test_results_of_no_more_lists_are_in_flight_than_the_projection_counts(path):
    worker, source = Worker(settings(batch=64)), TiffSource(path, SourceOptions())
    worker.reading = DeviceReading(worker.reading, worker.device, None)
    y, x = (a.ravel().astype(np.int64) for a in np.mgrid[0:500:16, 0:700:32])
    parts = -(-len(y) // 64)
    met = threading.Barrier(RESULTS + 1, timeout=1)

    def one(_):
        taken = 0
        with (
            worker.lane() as leave,
            closing(worker.embed_tiles(source, ReadSpec(0, 1.0, 96, 1.0), y, x, Clock(), when_read=leave)) as given,
        ):
            for taken, _ in enumerate(given, 1):
                if taken == parts - 1:  # all are launched, and one of them has not landed
                    with suppress(threading.BrokenBarrierError):
                        met.wait()
                        return "more results than are counted"
        return taken

    with ThreadPoolExecutor(RESULTS + 1) as pool:
        assert list(pool.map(one, range(RESULTS + 1))) == [parts] * (RESULTS + 1)
    assert worker.lanes._value == LANES


def test_who_waits_for_a_lane_begins_nothing_once_the_process_is_asked_to_stop():
    worker = Worker(settings())
    for _ in range(LANES):
        worker.lanes.acquire()

    def begin():
        with worker.lane():
            return "begun"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(begin)
        STOP.set()
        try:
            worker.lanes.release(LANES)
            with pytest.raises(InterruptedRunError, match="stopped"):
                waiting.result()
        finally:
            STOP.clear()
    assert worker.lanes._value == LANES


class Circle:
    """Refers to itself, as encoders do: only the garbage collector ends it."""

    def __init__(self):
        self.own = self


def test_what_nobody_has_any_more_is_gone_when_the_rest_is_put_out_of_the_collectors_way():
    gc.disable()
    try:
        gone = weakref.ref(Circle())
        assert gone() is not None
        settle()()
        assert gone() is None
    finally:
        gc.enable()


def test_the_encoder_of_another_run_is_gone_before_the_next_one_is_built(monkeypatch):
    built = []

    def build(spec):
        assert all(each() is None for each in built)
        encoder = Corners()
        encoder.own = [encoder]
        built.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(worker_module, "build_encoder", build)
    monkeypatch.setattr(worker_module, "_worker", None)
    gc.disable()
    try:
        for batch in (8, 16, 24):
            assert worker_for(settings(batch=batch)).batch == batch
    finally:
        gc.enable()
    assert len(built) == 3


def test_decoding_on_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"source.decode: gpu, but compute.device is cpu. Set source.decode to auto or cpu"):
        Worker(settings(decode="gpu"))
