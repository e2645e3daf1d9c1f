"""An export that finds no room ends in our words, by exit code, and leaves nothing behind."""

import re
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.support.stores import make_store
from tilestream.interop.hdf5 import new_hdf5

LIMIT = 20_000


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder / "a.zarr", keep=np.ones((40, 50), bool), dim=64)
    return folder


@pytest.mark.parametrize("name", ["trident-h5", "pt", "parquet"])
def test_an_export_without_room_ends_with_exit_5(output, tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-m", "tilestream", "export", str(output), "--to", name, "--out", str(tmp_path / "out") + "/"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert re.search("the output cannot be written or read: .*File too large", done.stderr)
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".tilestream")]


WRITE = """
import sys, resource, numpy as np
from pathlib import Path
from tilestream.interop.hdf5 import new_hdf5
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with new_hdf5(Path(sys.argv[1])) as (file, storage):
        rows = file.create_dataset("rows", (3000, 16), np.float32, chunks=(256, 16), maxshape=(None, 16))
        for start in range(0, 3000, 500):
            rows[start : start + 500] = np.arange(start, start + 500)[:, None]
            if len(sys.argv) > 3:
                storage.check()
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("limit", [1_000, 100_000, 190_000])
@pytest.mark.parametrize("stop", [[], ["at once"]])
def test_hdf5_survives_a_disk_that_fills_up_anywhere(tmp_path, limit, stop):
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / "a.h5"), str(limit), *stop], stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "27\n")


def test_what_has_room_is_whole(tmp_path):
    values = np.random.default_rng(0).random((3000, 16), np.float32)
    with new_hdf5(tmp_path / "a.h5") as (file, storage):
        rows = file.create_dataset("rows", values.shape, np.float32, chunks=(256, 16), compression="gzip")
        for start in range(0, 3000, 500):
            rows[start : start + 500] = values[start : start + 500]
            storage.check()
        rows.attrs["name"] = "x"
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["rows"][:], values)
        assert file["rows"].attrs["name"] == "x"
