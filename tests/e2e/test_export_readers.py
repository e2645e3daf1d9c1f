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
from tests.support.images import make_image, write_pyramid
from tests.support.made_objects import CLASSES, made_rows, put_objects
from tests.support.needs import without
from tests.support.runs import config
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


LABELS = """
import json, sqlite3, sys, warnings, zlib
warnings.simplefilter("ignore")
import geopandas, numpy as np, shapely, spatialdata, zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import ImageLabel
from spatialdata.transformations import get_transformation
stored, image, container, parquet, geojson, base = sys.argv[1:]
for path in (stored, image):
    ImageLabel.from_zarr(zarr.open_group(path, mode="r"))
    (node,) = Reader(parse_url(path))()
    levels = [np.asarray(level) for level in node.data]
    assert all(level.shape == tuple(-(-side // 2**k) for side in levels[0].shape) for k, level in enumerate(levels))
raster = spatialdata.read_zarr(container).labels["kinds"]
pixels = np.asarray(next(iter(raster["scale0"].data_vars.values())) if hasattr(raster, "children") else raster)
assert np.array_equal(pixels, levels[0])
corner = get_transformation(raster, to_coordinate_system="global").to_affine_matrix(("x", "y"), ("x", "y")) @ [*pixels.shape[::-1], 1]
tables = [geopandas.read_parquet(parquet), geopandas.read_file(geojson)]
assert all(table.geometry.is_valid.all() for table in tables)
rows = sqlite3.connect(base).execute("SELECT geometry, properties FROM annotations").fetchall()
outlines = shapely.from_wkb([zlib.decompress(row[0]) for row in rows])
assert shapely.is_valid(outlines).all()
kinds = [np.array(tables[0]["class"]), np.array([json.loads(each)["name"] if isinstance(each, str) else each["name"] for each in tables[1]["classification"]]),
         np.array([json.loads(row[1])["type"] for row in rows])]
areas = [np.array(tables[0].area), np.array(tables[1].area), shapely.area(outlines)]
names = [each["class"] for each in zarr.open_group(stored, mode="r").attrs["ome"]["image-label"]["properties"]][1:]
print(json.dumps({"corner": corner[:2].tolist(), "pixels": [int((pixels == k).sum()) for k in range(1, len(names) + 1)],
                  "areas": [[float(area[kind == name].sum()) for name in names] for kind, area in zip(kinds, areas)]}))
"""


def test_label_images_are_read_by_ome_zarr_spatialdata_geopandas_and_sqlite(tmp_path, readers):
    write_pyramid(tmp_path / "a.tif", make_image(900, 700, 1), levels=1, compression="deflate", mpp=0.5)
    head = {"kind": "segment", "model": "tests.support.dense_models:strided41", "size": 192}
    tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", encoder="none", tiles={"size": 128}, heads={"kinds": head}))
    ends = {"ome-zarr": "ome.zarr", "spatialdata": "zarr", "parquet": "parquet", "geojson": "geojson", "annotation-store": "db"}
    for name, end in ends.items():
        list(export_slides(str(tmp_path / "out"), name, what="kinds", slide="a", out=str(tmp_path / f"labels.{end}")))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = [tmp_path / "out" / "a.zarr" / "labels" / "kinds", *(tmp_path / f"labels.{end}" for end in ends.values())]
    done = subprocess.run([readers, "-c", LABELS, *map(str, paths)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["corner"] == [700, 900]
    for areas in told["areas"]:
        assert areas == pytest.approx([pixels * 16 for pixels in told["pixels"]], rel=1e-3)
