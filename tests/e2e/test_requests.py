"""How often a run asks an object store: each request is a round trip, and in many stores each is paid for."""

import asyncio
import re
from collections import Counter

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened, same_store
from tests.support.s3_server import counted_store
from tilestream.store.folder import Folder
from tilestream.store.object_store import SETS_AT_ONCE, set_objects

SECTIONS = {"tiles": {"size": 96}, "encoder": "tests.support.encoders:corners", "pool": "mean", "output": {"save": ["tiles", "slide"]}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [write_pyramid(folder / f"{name}.tif", make_image(400, 500, seed=seed), levels=1) for seed, name in enumerate("abc")]


@pytest.fixture
def store(images):
    with counted_store() as server:
        for path in images:
            server.put("slides", path.name, path.read_bytes())
        yield server


def total(counts, bucket):
    return sum(found["requests"] for found in counts.get(bucket, {}).values())


def test_a_slide_takes_few_requests_and_a_finished_one_hardly_any(store, images, tmp_path):
    given = config("s3://slides/", "s3://out/there", **SECTIONS)
    assert tilestream.run(given).exit_code == 0
    asked, counts = list(store.asked), store.counts()
    assert total(counts, "slides") / len(images) <= 7
    assert total(counts, "out") / len(images) <= 175
    written = Counter(path for bucket, method, path, *_ in asked if (bucket, method) == ("out", "PUT"))
    twice = {path for path, times in written.items() if times > 1 and not re.search(r"claims/|obs/zarr\.json", path)}
    assert not twice, "an object is written once"
    assert not [path for _, method, path, *_, status in asked if (method, status) == ("PUT", 412)], (
        "nothing is written to see whether it is there"
    )
    assert tilestream.run(given).new_tiles == 0
    counts = store.counts()
    assert total(counts, "slides") / len(images) <= 3
    assert total(counts, "out") / len(images) <= 13
    tilestream.run(config(images, tmp_path / "here", **SECTIONS))
    for path in images:
        there, here = (opened(place, path.stem) for place in ("s3://out/there", tmp_path / "here"))
        assert same_store(there, here)
        np.testing.assert_array_equal(there.slide_vector, here.slide_vector)


def test_a_shard_that_is_written_again_is_not_read_first(store, images):
    given = config("s3://slides/a.tif", "s3://out/again", **SECTIONS)
    tilestream.run(given)
    shard = "again/a.zarr/tables/tiles/X/c/0/0"
    before, _, _ = store.buckets["out"][shard]
    store.put("out", shard, b"torn")
    Folder("s3://out/again/a.zarr").delete(".tilestream/complete.json")
    store.counts()
    assert tilestream.run(given).new_tiles == 30
    assert store.buckets["out"][shard][0] == before
    methods = [method for _, method, path, *_ in store.asked if path == f"/out/{shard}"]
    assert methods[: methods.index("PUT")] == ["GET"], "its checksum was looked at"


class Failing:
    """A store that does not take one object."""

    def __init__(self):
        self.written, self.under_way = [], 0

    async def set(self, key, value):
        self.under_way += 1
        try:
            await asyncio.sleep(0)
            if key == "50":
                raise OSError(f"{key} is not taken")
            self.written.append(key)
        finally:
            self.under_way -= 1


def test_of_objects_that_are_written_together_none_is_under_way_once_one_has_failed():
    failing = Failing()
    with pytest.raises(OSError, match="50 is not taken"):
        asyncio.run(set_objects(failing, {str(k): b"x" for k in range(200)}))
    assert failing.under_way == 0
    assert 50 <= len(failing.written) < 50 + SETS_AT_ONCE
