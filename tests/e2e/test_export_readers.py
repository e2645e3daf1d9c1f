"""What other programs read from our exports, in an environment of theirs: no package of it is one of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely
from PIL import Image

import tilestream
from tests.support.made_objects import CLASSES, made_rows, put_objects
from tests.support.needs import without
from tests.support.stores import make_store, png
from tilestream.interop.exports import FORMATS, export_slides
from tilestream.interop.importing import import_features
from tilestream.interop.omezarr import grid_shape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SUPPORT = Path(__file__).parents[1] / "support"
READ = ("spatialdata", "ome-zarr", "geojson")
DOWNSAMPLE = 32.0


@pytest.fixture(scope="session")
def readers(tmp_path_factory):
    """The Python of the readers' environment: that of TILESTREAM_READERS, or a new one with the versions of `support/readers.txt`."""
    if stated := os.environ.get("TILESTREAM_READERS"):
        return stated
    folder = tmp_path_factory.mktemp("readers")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-r", str(SUPPORT / "readers.txt")], check=False, capture_output=True, text=True
    )
    if done.returncode:
        without(f"the readers cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


def check(python, folder, names=READ, *, corner=(0, 0), in_bounds=False):
    """Export the slide `a` and let the readers open it; places are of tiles as row, col, x, y, and lengths in level-0 px."""
    for name in names:
        list(export_slides(str(folder), name, in_bounds=in_bounds))
    slide = tilestream.open(folder / "a.zarr")
    obs, mask = slide.obs, folder / "a.zarr" / "tissue.png"
    if mask.exists():
        np.save(folder / "mask.npy", np.asarray(Image.open(mask)) > 0)
    told = {
        "exports": {name: str(folder / "exports" / name / f"a{FORMATS[name].suffix}") for name in names}, "mask": str(folder / "mask.npy"),
        "tiles": obs[["row", "col", "x", "y"]].to_numpy().tolist(), "failed": np.flatnonzero(~slide.read_good()).tolist(), "corner": corner,
        "side": slide.l0_extent, "step": slide.stride * slide.scale, "grid": grid_shape(slide) if slide.gridded else None, "downsample": DOWNSAMPLE,
        "labels": [*(["tile_grid"] if slide.gridded else []), *(["tissue"] if mask.exists() else [])],
        "images": ["thumbnail"] if (folder / "a.zarr" / "thumbnail.png").exists() else [], "width": slide.size.width, "height": slide.size.height, "mpp": slide.mpp,
    }  # fmt: skip
    (folder / "told.json").write_text(json.dumps(told))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(SUPPORT / "read_exports.py"), str(folder / "told.json")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: ok" for name in names]


@pytest.mark.parametrize(("scale", "stride"), [(1.0, 224), (1.3, 200)])
def test_readers_find_every_tile_at_its_place(tmp_path, readers, scale, stride):
    keep = np.random.default_rng(1).random((150, 90)) < 0.4
    make_store(tmp_path / "a.zarr", 150, 90, keep=keep, failed=[3, 700], scale=scale, stride=stride, thumbnail_downsample=DOWNSAMPLE)
    check(readers, tmp_path)


def test_readers_open_a_slide_without_tiles(tmp_path, readers):
    make_store(tmp_path / "a.zarr", keep=np.zeros((4, 5), bool), thumbnail_downsample=DOWNSAMPLE)
    check(readers, tmp_path)


def test_readers_open_a_slide_whose_tiles_all_failed(tmp_path, readers):
    make_store(tmp_path / "a.zarr", failed=range(20), thumbnail_downsample=DOWNSAMPLE)
    check(readers, tmp_path)


def test_readers_open_tiles_on_no_grid(tmp_path, readers):
    xy = [(517, 103), (37, 103), (517, 359), (1111, 700)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = np.ones((4, 5), np.float32), np.array(xy)
        file["coords"].attrs.update(patch_size=256, patch_level=0)
    import_features(str(tmp_path / "a.h5"), "a", str(tmp_path))
    check(readers, tmp_path, ["spatialdata"])


def test_outlines_of_ragged_tissue_are_valid_polygons(tmp_path, readers):
    bounds = {"openslide.bounds-x": "100", "openslide.bounds-y": "30"}
    make_store(tmp_path / "a.zarr", thumbnail_downsample=DOWNSAMPLE, bounds=bounds)
    ragged = np.random.default_rng(2).random((28, 35)) < 0.6  # pieces and holes that touch at corners, of one px, at every edge
    (tmp_path / "a.zarr" / "tissue.png").write_bytes(png(ragged))
    check(readers, tmp_path, ["geojson"], corner=(30, 100), in_bounds=True)


OBJECTS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import geopandas, spatialdata
store, parquet, geojson, container = sys.argv[1:]
file = geopandas.read_parquet(store)
near = geopandas.read_parquet(store, bbox=(0, 0, 2000, 2000))
shapes = spatialdata.read_zarr(container).shapes["nuclei"]
features = geopandas.read_file(geojson)
assert len(near) == len(file.cx[0:2000, 0:2000]) > 0
assert geopandas.read_parquet(parquet).equals(file)
assert list(shapes.index) == list(file["id"])
assert file.geometry.is_valid.all() and features.geometry.is_valid.all()
areas = [float(each.area.sum()) for each in (file, shapes, features)]
print(json.dumps({"count": len(file), "areas": areas, "classes": sorted(set(file["class"]))}))
"""


def test_objects_are_read_by_geopandas_and_spatialdata(tmp_path, readers):
    make_store(tmp_path / "a.zarr")
    groups = [made_rows(300, 0), made_rows(200, 1)]
    put_objects(tmp_path / "a.zarr", groups)
    for name in ("parquet", "geojson", "spatialdata"):
        list(export_slides(str(tmp_path), name, what="nuclei"))
    paths = [tmp_path / "exports" / f"{name}-nuclei" / f"a{end}" for name, end in (("parquet", ".parquet"), ("geojson", ".geojson"), ("spatialdata", ".zarr"))]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [readers, "-c", OBJECTS, str(tmp_path / "a.zarr" / "shapes" / "nuclei.parquet"), *map(str, paths)], capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["count"], told["classes"]) == (500, sorted(CLASSES))
    assert told["areas"] == pytest.approx([sum(shapely.area(rows.shapes).sum() for rows in groups)] * 3, rel=1e-6)
