"""Damage in words: the mark, the completion, single rows; and what is no file at all."""

import os
import pickle
import shutil

import numpy as np
import pytest

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, opened
from tilestream.errors import IncompleteError
from tilestream.store.cohort import verify_output

SECTIONS = {
    "tiles": {"size": 64, "level": 0, "tissue": "none"},
    "encoder": "tests.support.encoders:corners",
    "compute": {"shard_tiles": 10},
}
MARK = ".tilestream/store.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    image = write_pyramid(folder / "a.tif", make_image(300, 300, 1), compression="deflate", levels=1, mpp=0.5)
    tilestream.run(settings := config(image, folder / "out", **SECTIONS))
    return folder / "out", settings


@pytest.fixture
def output(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out", {**finished[1], "output": {**finished[1]["output"], "path": str(tmp_path / "out")}}


def content(output):
    store = output / "a.zarr"
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def mends(output, settings, *named):
    """Whether verify names what is wrong, and repair and run bring back every byte."""
    said = []
    assert verify_output(str(output), said.append) == 4
    for name in named:
        assert any(name in line for line in said), (name, said)
    verify_output(str(output / "a.zarr"), said.append, repair=True)
    assert tilestream.run(settings).exit_code == 0
    assert verify_output(str(output), said.append) == 0
    return content(output)


@pytest.mark.parametrize("data", [None, b"", b"{", b"null", b"[1]", b'{"tilestream": 3}', b"\xff\xfe", b"[" * 3000])
@pytest.mark.parametrize("root", [True, False])
def test_a_store_without_its_mark_is_named_and_mended(finished, output, data, root):
    for name in (MARK, *([] if root else ["zarr.json"])):
        path = output[0] / "a.zarr" / name
        path.unlink() if data is None else path.write_bytes(data)
    assert mends(*output, *([MARK] if root else [MARK, "zarr.json: "])) == content(finished[0])


@pytest.mark.parametrize("data", [b'{"attributes": 3}', b'{"attributes": {"tilestream": []}}', b"[" * 3000])
def test_a_store_of_which_the_completion_and_the_root_are_lost_is_one_still(finished, output, data):
    (output[0] / "a.zarr" / ".tilestream" / "complete.json").unlink()
    (output[0] / "a.zarr" / "zarr.json").write_bytes(data)
    assert mends(*output, ".tilestream/complete.json: missing") == content(finished[0])


def test_repair_leaves_a_folder_that_is_nobodys_alone(output):
    (output[0] / "b.zarr").mkdir()
    verify_output(str(output[0]), str, repair=True)
    assert list((output[0] / "b.zarr").iterdir()) == []


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


READS = {
    "embeddings": lambda slide: slide.embeddings[:],
    "one row": lambda slide: slide.embeddings[12],
    "chosen rows": lambda slide: slide.embeddings.oindex[[3, 12]],
    "rows at places": lambda slide: slide.embeddings.vindex[[3, 12], [0, 1]],
    "numpy": lambda slide: np.asarray(slide.embeddings),
    "dask": lambda slide: slide.to_dask().compute(scheduler="sync"),
    "anndata": lambda slide: slide.to_anndata(),
    "blocks": lambda slide: list(slide.blocks()),
    "vectors": lambda slide: list(slide.vector_blocks()),
    "sent elsewhere": lambda slide: pickle.loads(pickle.dumps(slide.embeddings))[:],
}


@pytest.mark.parametrize("read", READS)
def test_damaged_rows_are_named_where_they_are_read(output, read):
    flip(output[0] / "a.zarr" / "tables" / "tiles" / "X" / "c" / "1" / "0")
    words = r"a\.zarr is damaged: tables/tiles/X/c/1/0: bytes differ.* \(rows 10 to 19\)\. Run `tilestream verify --repair`"
    with pytest.raises(IncompleteError, match=words):
        READS[read](opened(output[0], "a"))


def test_sound_rows_beside_damaged_ones_are_read_and_wrong_indices_stay_errors_of_their_own(finished, output):
    flip(output[0] / "a.zarr" / "tables" / "tiles" / "X" / "c" / "1" / "0")
    slide = opened(output[0], "a")
    np.testing.assert_array_equal(slide.embeddings[:10], opened(finished[0], "a").embeddings[:10])
    with pytest.raises(IndexError, match="out of bounds"):
        slide.embeddings[10_000]


@pytest.mark.parametrize("name", ["tables/tiles/X/c/1/0", MARK, ".tilestream/complete.json", "zarr.json"])
def test_a_pipe_among_the_objects_is_damage_and_nothing_waits_for_it(finished, output, name):
    path = output[0] / "a.zarr" / name
    path.unlink()
    os.mkfifo(path)
    assert mends(*output, name) == content(finished[0])
