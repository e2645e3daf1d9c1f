"""Slides read where they lie, in an object store and on a web server: the rows are those of a local run, bit for bit."""

import shutil

import numpy as np
import pytest

from tests.support.range_server import serving
from tests.support.runs import embed, opened
from tests.support.s3_server import s3_bucket
from tilestream.config.slide_list import list_slides
from tilestream.errors import ConfigError, OutageError

SLIDE = "CMU-1-Small-Region.svs"
CHOICES = {"tiles": {"size": 96, "level": 0, "tissue": "none"}, "compute": {"shard_tiles": 200}}


@pytest.fixture(scope="module")
def folder(slides, tmp_path_factory):
    made = tmp_path_factory.mktemp("slides")
    shutil.copyfile(slides / SLIDE, made / SLIDE)
    return made


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("local")
    assert embed(folder / SLIDE, output, **CHOICES).exit_code == 0
    return opened(output, "CMU-1-Small-Region")


@pytest.fixture(scope="module")
def web(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(folder):
    with s3_bucket("lab") as client:
        client.upload_file(str(folder / SLIDE), "lab", f"a b/{SLIDE}")
        yield client


def rows_equal(output, local):
    found = opened(output, "CMU-1-Small-Region")
    np.testing.assert_array_equal(found.embeddings[:], local.embeddings[:])
    np.testing.assert_array_equal(found.slide_vector, local.slide_vector)
    assert found.obs.equals(local.obs)


def test_a_slide_in_a_bucket_gives_the_rows_of_the_local_file(bucket, local, tmp_path):
    assert embed(f"s3://lab/a b/{SLIDE}", tmp_path, **CHOICES).exit_code == 0
    rows_equal(tmp_path, local)


def test_a_slide_on_a_web_server_gives_the_rows_of_the_local_file(web, local, tmp_path):
    assert embed(web.url(SLIDE, "?sig=secret"), tmp_path, **CHOICES).exit_code == 0
    rows_equal(tmp_path, local)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]


def test_patterns_and_prefixes_in_a_bucket_are_lists_of_slides(bucket):
    for key in (
        "list/a.svs",
        "list/b.svs",
        "list/notes.txt",
        "list/.hidden.svs",
        "list/deep/c d.svs",
        "list/z.zarr/zarr.json",
        "list/z.zarr/0/c/0",
    ):
        bucket.put_object(Bucket="lab", Key=key, Body=b"x")

    def listed(*slides):
        return [ref.address.removeprefix("s3://lab/list/") for ref in list_slides(slides)]

    assert listed("s3://lab/list/*.svs") == ["a.svs", "b.svs"]
    assert listed("s3://lab/list/") == ["a.svs", "b.svs", "z.zarr"]
    assert listed("s3://lab/list/**/*.svs") == ["a.svs", "b.svs", "deep/c d.svs"]
    assert listed("s3://lab/*/z.zarr", "s3://lab/list/[b]*") == ["z.zarr", "b.svs"]
    assert [ref.id for ref in list_slides(["s3://lab/l*/d*p/*"])] == ["c d"]
    for entry, words in {
        "s3://lab/list/*.ndpi": "nothing matches", "s3://lab/none/": "right below", "s3://l*b/a.svs": "the bucket itself cannot be a pattern",
        "https://host/slides/*.svs": "web servers give no lists",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            list_slides([entry])
    with pytest.raises(OutageError, match=r"s3://other cannot be listed: The specified bucket does not exist \(NoSuchBucket\)"):
        list_slides(["s3://other/*"])
