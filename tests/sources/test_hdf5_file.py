"""Foreign HDF5: what a file declares, links to or hides elsewhere costs nothing and shows nothing."""

import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tilestream.errors import InputError
from tilestream.interop.importing import import_features
from tilestream.sources.hdf5_file import MOST_TILES, open_hdf5, read_dataset
from tilestream.tiles.coords import open_places

N = 64


def declared(file, shape, **options):
    return file.create_dataset("coords", shape=shape, dtype="i8", **options)


CASES = {
    "a contiguous table that was never written": lambda f: declared(f, (2**33, 2)),
    "chunks of which none was written": lambda f: declared(f, (1_000_000, 2), chunks=(1024, 2)),
    "chunks of which one was written": lambda f: declared(f, (1_000_000, 2), chunks=(1024, 2)).__setitem__(slice(0, 10), 1),
    "a chunk too large to hold": lambda f: declared(f, (2**27, 2), chunks=(2**27, 2), compression="gzip"),
    "more tiles than any slide": lambda f: declared(f, (MOST_TILES + 1, 2), chunks=(1024, 2)),
    "numbers in another file": lambda f: declared(f, (N, 2), external=[("/etc/passwd", 0, N * 16)]),
    "numbers without an end": lambda f: declared(f, (N, 2), external=[("/dev/zero", 0, N * 16)]),
    "a link to another file": lambda f: f.__setitem__("coords", h5py.ExternalLink("other.h5", "/coords")),
    "a link to itself": lambda f: f.__setitem__("coords", h5py.SoftLink("/coords")),
    "a group": lambda f: f.create_group("coords"),
    "texts": lambda f: f.create_dataset("coords", data=np.array([["a", "b"]], object), dtype=h5py.string_dtype()),
    "lists": lambda f: f.create_dataset("coords", shape=(N, 2), dtype=h5py.vlen_dtype(np.int64)),
    "records": lambda f: f.create_dataset("coords", data=np.zeros((N, 2), [("x", "i4")])),
    "one number": lambda f: f.create_dataset("coords", data=5),
    "nothing": lambda f: f.create_dataset("coords", data=h5py.Empty("i8")),
    "a part of a virtual table": lambda f: f.create_virtual_dataset("coords", virtual()),
    "places off the map": lambda f: f.create_dataset("coords", data=np.full((2, 2), 2**40)),
    "places beyond what is signed": lambda f: f.create_dataset("coords", data=np.full((2, 2), 2**64 - 1, np.uint64)),
}


def virtual():
    layout = h5py.VirtualLayout((N, 2), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "coords", shape=(N, 2))
    return layout


@pytest.mark.parametrize("name", CASES)
def test_what_the_file_does_not_hold_itself_is_refused(tmp_path, name):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["coords"] = np.zeros((N, 2), np.int64)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        CASES[name](file)
    with pytest.raises(InputError, match=r"a\.h5: "), open_places(path) as file:
        assert len(file.x) == len(file.y)


@pytest.mark.parametrize("options", [{}, {"chunks": (10, 2)}, {"chunks": (10, 2), "compression": "gzip"}, {"maxshape": (None, 2)}])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", "u1"])
def test_whole_tables_are_read_however_they_are_laid_out(tmp_path, options, dtype):
    values = np.arange(2 * N).reshape(N, 2).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("coords", data=values, **options)
    with open_hdf5(tmp_path / "a.h5") as file:
        assert np.array_equal(read_dataset("a.h5", file, "coords")[:], values)


@pytest.mark.parametrize("name", ["patch_size_level0", "patch_level", "overlap", "level0_width"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 1e308, 2**63 - 1, "64", b"64", np.complex64(1)])
def test_an_attribute_that_is_no_sensible_number_is_refused_by_name(tmp_path, name, value):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["coords"] = np.ones((1, 3), np.float32), np.zeros((1, 2), np.int64)
        file["coords"].attrs.update({"patch_size": 64, name: value})
    with pytest.raises(InputError, match=f"f.h5: {name} is .*, but it must be a number"):
        import_features(str(tmp_path / "f.h5"), "a", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "a.zarr").exists()


def test_a_few_kilobytes_cost_no_memory(tmp_path):
    """The whole of it under a limit of address space that 128 GiB of places would break."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = np.ones((1, 3), np.float32)
        declared(file, (2**33, 2), chunks=(1024, 2))
    assert (tmp_path / "f.h5").stat().st_size < 10_000
    code = (
        "import sys\nfrom tilestream.interop.importing import import_features\nfrom tilestream.errors import InputError\n"
        "try:\n    import_features(sys.argv[1], 'a', sys.argv[2])\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f.h5"), str(tmp_path / "out")], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31)),
    )  # fmt: skip
    assert "more than the 4194304 tiles" in done.stdout
