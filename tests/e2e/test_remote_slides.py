"""Slides read where they lie, in an object store and on a web server: the rows are those of a local run, bit for bit."""

import shutil

import numpy as np
import pytest

from tests.support.range_server import serving
from tests.support.runs import embed, opened
from tests.support.s3_server import s3_bucket

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
