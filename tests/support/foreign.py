"""Things that are not ours, where a store of ours might be wanted; and what a folder holds, to the byte."""

import shutil

import numpy as np
import zarr

from tests.support.images import make_image, write_ome_zarr


def snapshot(folder):
    """Each file, link and empty folder by its name: bytes, target, None."""
    found = {}
    for path in sorted(folder.rglob("*")):
        key = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[key] = str(path.readlink())
        elif path.is_file():
            found[key] = path.read_bytes()
        elif not any(path.iterdir()):
            found[key] = None
    return found


def _file(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"a file of this name")


def _folder(place):
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("years of annotations")


def _link(place):
    elsewhere = place.parent / "elsewhere"
    _folder(elsewhere)
    place.symlink_to(elsewhere)


def _link_to_nothing(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(place.parent / "an external disk")


def _link_to_empty(place):
    (place.parent / "empty").mkdir(parents=True)
    place.symlink_to(place.parent / "empty")


def _group(version):
    def make(place):
        root = zarr.create_group(str(place), zarr_format=version, attributes={"mine": True})
        root.create_group("tables").create_array("X", data=np.arange(6.0).reshape(2, 3))

    return make


def _array(version):
    def make(place):
        zarr.create_array(str(place), data=np.arange(10), zarr_format=version)

    return make


def _ome_zarr(place):
    place.parent.mkdir(parents=True, exist_ok=True)
    write_ome_zarr(place, make_image(96, 96, seed=1))
    (place / "notes.txt").write_text("years of annotations")


def _attributes_alike(place):
    """Attributes of our name, but no recipe."""
    zarr.create_group(str(place), attributes={"tilestream": {"note": "to be embedded"}})


def _output(place):
    """An output folder within the output, without a store."""
    _folder(place / ".tilestream")
    shutil.move(place / ".tilestream" / "notes.txt", place / "run.json")


def _almost_marked(place):
    """Something of theirs in a folder of our name, and beside a mark that was cut short."""
    _folder(place)
    (place / ".tilestream").mkdir()
    (place / ".tilestream" / "store.json").write_bytes(b"")


SEEDS = {
    "file": _file,
    "folder": _folder,
    "link": _link,
    "link-to-nothing": _link_to_nothing,
    "link-to-empty": _link_to_empty,
    "zarr-v2-group": _group(2),
    "zarr-v3-group": _group(3),
    "zarr-v2-array": _array(2),
    "zarr-v3-array": _array(3),
    "ome-zarr": _ome_zarr,
    "attributes-alike": _attributes_alike,
    "output": _output,
    "almost-marked": _almost_marked,
}
"""What makes each of them at a path."""
