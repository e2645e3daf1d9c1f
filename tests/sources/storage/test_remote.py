"""Objects as byte sources: what is asked of a server, what is held, and what becomes of each way in which a server fails."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import numpy as np
import pytest

from tests.support.range_server import serving
from tilestream.errors import InputError, NotThereError, OutageError, ReadError
from tilestream.sources.storage import ahead, fetching, ranges
from tilestream.sources.storage.opened import open_bytes
from tilestream.sources.storage.ranges import FIRST_REQUEST, LARGEST_REQUEST, WASTE, requests_of

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
PIECE = 10_000
STARTS = list(range(200_000, len(DATA) - PIECE, PIECE))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    with serving(tmp_path) as started:
        yield started


def read_all(source, starts, again=()):
    with source.ahead(starts, [PIECE] * len(starts), again), ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda start: source.read(start, PIECE) == DATA[start : start + PIECE], starts))


def test_neighbours_come_in_few_requests_and_nothing_twice(server):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        read_all(source, STARTS)
        assert server.requests <= 8  # the first ones are small
        assert server.bytes_sent == len(STARTS) * PIECE


def test_pieces_apart_are_joined_only_over_small_gaps():
    rng = np.random.default_rng(1)
    starts = np.sort(rng.choice(np.arange(0, 40_000), 4000, replace=False)) * 1000
    counts = rng.integers(100, 1000, 4000)
    groups = requests_of(starts, counts)
    assert np.array_equal(np.sort(np.concatenate(groups)), np.arange(4000))
    asked = sum(int((starts[group] + counts[group]).max() - starts[group].min()) for group in groups)
    assert asked <= (1 + WASTE) * counts.sum()
    assert all((starts[group] + counts[group]).max() - starts[group].min() <= LARGEST_REQUEST for group in groups)
    assert len(groups) < 4000 * 0.9


def test_what_is_held_is_bounded_and_every_byte_comes(server, monkeypatch):
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 300_000)
    monkeypatch.setattr(ranges, "WINDOW", 100_000)
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        most = 0
        with source.ahead(STARTS, [PIECE] * len(STARTS)):
            for start in STARTS:
                assert source.read(start, PIECE) == DATA[start : start + PIECE]
                most = max(most, sum(plan.held for plan in source._ranges._plans))
        assert most <= 300_000
        assert server.bytes_sent == len(STARTS) * PIECE
        assert not source._ranges._requests


def test_what_the_next_list_wants_again_is_not_asked_for_again(server):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        read_all(source, STARTS[:100], [k >= 80 for k in range(100)])
        read_all(source, STARTS[80:200])
        assert server.bytes_sent == 200 * PIECE


def test_what_is_read_first_comes_before_what_follows_it(server, monkeypatch):
    """A piece is there as soon as its own bytes are, while the rest of its request is still under way."""
    read, sent = threading.Event(), count()
    monkeypatch.setattr(ranges, "FIRST_REQUEST", 2 * len(DATA))
    monkeypatch.setattr(ranges, "LARGEST_REQUEST", 2 * len(DATA))
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        monkeypatch.setattr(server, "pace", lambda _: read.wait(30) if next(sent) == 2 else None)  # until the first piece is read
        with source.ahead(STARTS, [PIECE] * len(STARTS)):
            assert source.read(STARTS[0], PIECE) == DATA[STARTS[0] : STARTS[0] + PIECE]
            read.set()
            assert source.read(STARTS[-1], PIECE) == DATA[STARTS[-1] : STARTS[-1] + PIECE]
        assert server.requests == 1


def test_lists_start_with_small_requests_and_are_read_down_columns_by_rows():
    forwards = requests_of(np.arange(0, 4000) * 5000, np.full(4000, 5000))
    sizes = [5000 * len(group) for group in forwards]
    assert sizes[0] <= FIRST_REQUEST
    assert sizes[:-1] == sorted(sizes[:-1])
    assert max(sizes) <= LARGEST_REQUEST
    down = np.arange(4000).reshape(8, 500).T.ravel()  # places of eight rows that are read down their columns
    rows = requests_of(down * 5000, np.full(4000, 5000))
    assert [len(group) for group in rows] == [500] * 8


def test_two_lists_at_once_share_what_both_want(server):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        with source.ahead(STARTS[80:200], [PIECE] * 120):
            read_all(source, STARTS[:100])
            assert all(source.read(start, PIECE) == DATA[start : start + PIECE] for start in STARTS[80:200])
        assert server.bytes_sent == 200 * PIECE


def test_pieces_that_share_their_bytes_are_fetched_once(server):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        read_all(source, [STARTS[5]] * 50 + STARTS[6:20])
        assert server.bytes_sent == 15 * PIECE


def test_a_list_that_ends_early_holds_nothing(server):
    with open_bytes(server.url("a.bin")) as source:
        with source.ahead(STARTS, [PIECE] * len(STARTS)):
            source.read(STARTS[3], PIECE)
        assert not source._ranges._requests
        assert source.read(STARTS[3], PIECE) == DATA[STARTS[3] : STARTS[3] + PIECE]


@pytest.mark.parametrize("kind", ["500", "cut", "wrong_range"])
def test_failures_that_pass_are_outlasted(server, kind):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        read_all(source, STARTS)
        undisturbed = server.requests
        server.forget()
        server.fault = lambda number, _: kind if number < 2 else ""
        read_all(source, STARTS)
        assert server.requests == undisturbed + 2
        if kind == "cut":  # answers that were cut are not counted, and what came of them is not asked for again
            assert server.bytes_sent < len(STARTS) * PIECE


@pytest.mark.parametrize("kind", ["500", "cut", "wrong_range", "denied", "gone"])
def test_failures_that_last_are_an_outage_never_damage(server, kind):
    with open_bytes(server.url("a.bin", "?sig=secret")) as source:
        server.fault = lambda *_: kind
        with pytest.raises(OutageError, match="its storage does not answer") as told, source.ahead(STARTS, [PIECE] * len(STARTS)):
            source.read(STARTS[-1], PIECE)  # the first ones may have come
        assert "secret" not in str(told.value)


def test_a_server_that_is_gone_is_an_outage(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    with serving(tmp_path) as server:
        source = open_bytes(server.url("a.bin"))
    with pytest.raises(OutageError, match="its storage does not answer"):
        source.read(STARTS[0], PIECE)


def test_what_is_wrong_when_it_is_opened_is_said(server, tmp_path):
    with pytest.raises(NotThereError, match=r"b\.bin: there is no such object"):
        open_bytes(server.url("b.bin"))
    (tmp_path / "empty.bin").touch()
    with pytest.raises(InputError, match=r"empty\.bin: the object is empty"):
        open_bytes(server.url("empty.bin"))
    server.fault = lambda *_: "denied"
    with pytest.raises(InputError, match=r"access is refused .* What a web server asks for stands in the URL"):
        open_bytes(server.url("a.bin"))
    server.fault = lambda *_: "no_range"
    with pytest.raises(InputError, match=r"does not give parts of a file .* set source\.stage"):
        open_bytes(server.url("a.bin"))


@pytest.mark.parametrize("kind", ["", "weak"])
def test_an_object_that_is_replaced_is_refused(server, tmp_path, kind):
    server.fault = lambda *_: kind
    with open_bytes(server.url("a.bin")) as source:
        first = source.identity
        (tmp_path / "a.bin").write_bytes(DATA[::-1])
        os.utime(tmp_path / "a.bin", ns=(1, 1))
        with pytest.raises(InputError, match="changed while it was being read"):
            source.read(STARTS[0], PIECE)
    with open_bytes(server.url("a.bin")) as source:
        assert source.identity != first


def test_without_an_etag_ends_tell_objects_apart(server, tmp_path):
    server.fault = lambda *_: "no_etag"
    found = []
    for data in (DATA, DATA, DATA[:-1] + bytes([DATA[-1] ^ 1])):
        (tmp_path / "a.bin").write_bytes(data)
        with open_bytes(server.url("a.bin")) as source:
            found.append(source.identity)
    assert found[0] == found[1] != found[2]


def test_ranges_beyond_the_end_are_no_outage(server):
    with open_bytes(server.url("a.bin")) as source, pytest.raises(ReadError, match=r"20 bytes at 2999990 lie beyond the object's 3000000"):
        source.read(len(DATA) - 10, 20)


def test_parsers_read_it_as_a_file_in_few_requests(server):
    with open_bytes(server.url("a.bin")) as source:
        server.forget()
        with source.open_file() as file:
            for place in (2_900_000, 2_900_100, 2_999_000, 10, 100_000, 1_000_000, 1_050_000):
                file.seek(place)
                assert file.read(500) == DATA[place : place + 500]
        assert server.requests <= 4


def test_an_outage_that_a_parser_swallows_is_told_at_the_end(server):
    with open_bytes(server.url("a.bin")) as source:
        file = source.open_file()
        server.fault = lambda *_: "500"
        file.seek(1_000_000)
        with suppress(OutageError):
            file.read(10)
        with pytest.raises(OutageError, match="500"):
            file.close()


def test_many_threads_get_their_own_bytes(server):
    rng = np.random.default_rng(2)
    wrong = []
    with open_bytes(server.url("a.bin")) as source:

        def read(seed):
            order = [STARTS[k] for k in np.random.default_rng(seed).permutation(len(STARTS))[:60]]
            with source.ahead(order, [PIECE] * 60, rng.random(60) < 0.2):
                wrong.extend(start for start in order if source.read(start, PIECE) != DATA[start : start + PIECE])

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert not source._ranges._requests
        assert not source._ranges._plans
