"""Objects of a slide: each found once, whatever the blocks, workers and kills. Judges: pyarrow, shapely, anndata, and the list of what was drawn."""

import json
import shutil

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from PIL import Image
from scipy import ndimage

import tilestream
from tests.support.images import write_pyramid
from tests.support.made_nuclei import CLASSES, draw_nuclei, place_nuclei
from tests.support.resuming import start, wait_for_shard
from tests.support.runs import config
from tilestream.errors import ConfigError, InputError
from tilestream.store.cohort import verify_output
from tilestream.store.heads.shapes import shapes_key

BLOCKS = [(256, 32, "instances"), (200, 40, "instances"), (513, 31, "boxes"), (1024, 128, "instances"), (2048, 64, "boxes")]
"""Side of a patch, overlap, and what the detector gives."""

NAME = "tests.support.made_nuclei"


def made_slide(path, side, count, seed=0):
    """A slide of nuclei, with some in its corners and where blocks begin and end; what was drawn, as rows (y0, x0, y1, x1, class, area)."""
    edges = [0, side - 1, 224, 256, 480, 160, 360]
    nuclei = place_nuclei(side, count, seed, at=[(y, x) for y in edges for x in edges if max(y, x) < side])
    classes = np.random.default_rng(seed).integers(0, len(CLASSES), count)
    image = draw_nuclei(side, nuclei, classes)
    write_pyramid(path, image, compression="deflate", levels=1)
    number = np.where(image[..., 2] == 255, 0, image[..., 0].astype(np.int64) * 250 + image[..., 1])
    areas = np.bincount(number.ravel(), minlength=count + 1)[1:]
    boxes = [[rows.start, cols.start, rows.stop, cols.stop] for rows, cols in ndimage.find_objects(number)]
    return np.column_stack([boxes, classes, areas])


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("nuclei") / "a.tif"
    return path, made_slide(path, 2000, 1500)


def wanted(path, output, size=256, overlap=32, form="instances", **sections):
    """The config of a run of the detector alone."""
    head = {"kind": "detect", "model": f"{NAME}:{form}", "size": size, "overlap": overlap}
    tiles = {"size": 250, "level": 0, "tissue": "none"}
    return config(path, output, **{"encoder": "none", "tiles": tiles, "heads": {"nuclei": head}, **sections})


def read_shapes(output):
    table = pq.read_table(output / "a.zarr" / shapes_key("nuclei"))
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.is_valid(shapes).all()
    return table, shapes


def as_rows(table, shapes, *, boxes=False):
    """Objects as `made_slide` tells them, in order of place."""
    x0, y0, x1, y1 = shapely.bounds(shapes).T
    classes = [CLASSES.index(name) for name in table["class"].to_pylist()]
    rows = np.column_stack([y0, x0, y1, x1, classes, (y1 - y0) * (x1 - x0) if boxes else shapely.area(shapes)])
    return rows[np.lexsort(rows.T)]


def truth_of(rows, *, boxes=False):
    rows = rows.copy()
    if boxes:
        rows[:, 5] = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize(
    ("size", "overlap", "form"), [*BLOCKS[::2][:2], *(pytest.param(*block, marks=pytest.mark.slow) for block in BLOCKS[1::2] + BLOCKS[4:])]
)
def test_every_nucleus_is_found_once(tmp_path, slide, size, overlap, form):
    path, drawn = slide
    assert tilestream.run(wanted(path, tmp_path / "out", size, overlap, form)).exit_code == 0
    table, shapes = read_shapes(tmp_path / "out")
    assert (as_rows(table, shapes) == truth_of(drawn, boxes=form == "boxes")).all()
    assert table["id"].to_pylist() == list(range(1, len(drawn) + 1))
    assert np.allclose(table["area_um2"], shapely.area(shapes) * 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "overlap", "form"), BLOCKS)
def test_every_one_of_20000_nuclei_is_found_once(tmp_path_factory, size, overlap, form):
    home = tmp_path_factory.getbasetemp() / "many"
    if not home.exists():
        home.mkdir()
        np.save(home / "drawn.npy", made_slide(home / "a.tif", 8192, 20_000))
    drawn = np.load(home / "drawn.npy")
    roomy = {"memory_limit": "12GiB", "scheduler": "inline", "threads": 2}  # the process has held much before
    assert tilestream.run(wanted(home / "a.tif", home / f"{size}-{overlap}", size, overlap, form, compute=roomy)).exit_code == 0
    assert (as_rows(*read_shapes(home / f"{size}-{overlap}")) == truth_of(drawn, boxes=form == "boxes")).all()


def test_tiles_count_what_lies_in_them(tmp_path, slide):
    path, drawn = slide
    tilestream.run(wanted(path, tmp_path / "out", tiles={"size": 250, "stride": 125, "level": 0, "tissue": "none"}))
    table = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles")
    y, x = (drawn[:, 0] + drawn[:, 2]) / 2, (drawn[:, 1] + drawn[:, 3]) / 2
    for k in range(0, table.n_obs, 7):
        ty, tx = table.obs["y"].iloc[k], table.obs["x"].iloc[k]
        inside = (y >= ty) & (y < ty + 250) & (x >= tx) & (x < tx + 250)
        assert table.obsm["nuclei"][k].tolist() == np.bincount(drawn[inside, 4], minlength=3).tolist()
        assert table.obs["nuclei_count"].iloc[k] == inside.sum()
        assert np.isclose(table.obs["nuclei_per_mm2"].iloc[k], inside.sum() / 0.125**2)


def test_objects_in_no_tile_are_left_out_whatever_the_blocks(tmp_path, slide):
    path, drawn = slide
    mask = np.zeros((50, 50), np.uint8)
    mask[10:30, 5:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    tiles = {"size": 100, "level": 0, "tissue": {"mask": str(tmp_path / "mask.png"), "min_fraction": 1.0}}
    for size, overlap in ((256, 32), (700, 50)):
        tilestream.run(wanted(path, tmp_path / str(size), size, overlap, tiles=tiles))
    found = [as_rows(*read_shapes(tmp_path / str(size))) for size in (256, 700)]
    y, x = (drawn[:, 0] + drawn[:, 2]) / 2, (drawn[:, 1] + drawn[:, 3]) / 2
    inside = drawn[(y >= 400) & (y < 1200) & (x >= 200) & (x < 800)]
    assert 0 < len(inside) < len(drawn)
    assert all((rows == truth_of(inside)).all() for rows in found)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A slide of four units, and the objects of an undisturbed run."""
    folder = tmp_path_factory.mktemp("wide")
    made_slide(folder / "a.tif", 5000, 3000, seed=3)
    assert tilestream.run(wanted(folder / "a.tif", folder / "out", 1000, 40)).exit_code == 0
    return folder / "a.tif", (folder / "out" / "a.zarr" / shapes_key("nuclei")).read_bytes()


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(tmp_path, wide):
    path, undisturbed = wide
    tilestream.run(wanted(path, tmp_path / "out", 1000, 40, compute={"scheduler": "local", "workers": 2, "threads": 1}))
    assert (tmp_path / "out" / "a.zarr" / shapes_key("nuclei")).read_bytes() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("units", [1, 3])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, wide, units):
    path, undisturbed = wide
    given = wanted(path, tmp_path / "out", 1000, 40, "slow", compute={"scheduler": "inline", "threads": 1})
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    for _ in range(units):
        run = start(tmp_path)
        wait_for_shard(run, tmp_path)
        run.kill()
        run.communicate()
    assert tilestream.run(given).exit_code == 0
    output = tmp_path / "out" / "a.zarr"
    assert (output / shapes_key("nuclei")).read_bytes() == undisturbed
    assert not (output / ".tilestream" / "parts" / "nuclei").exists()


@pytest.mark.slow
def test_a_file_that_is_lost_or_hurt_is_made_again(tmp_path, slide):
    path, _ = slide
    given = wanted(path, tmp_path / "out")
    tilestream.run(given)
    file = tmp_path / "out" / "a.zarr" / shapes_key("nuclei")
    before = file.read_bytes()
    file.write_bytes(before[:-100])
    assert verify_output(str(tmp_path / "out"), [].append, repair=True) == 4
    assert tilestream.run(given).exit_code == 0
    assert file.read_bytes() == before


def test_an_object_larger_than_the_overlap_asks_for_more(tmp_path, slide):
    path, _ = slide
    with pytest.raises(InputError, match=r"heads\.nuclei\.overlap: 12 px, but .* an object of .* px or more.*Set heads\.nuclei\.overlap"):
        tilestream.run(wanted(path, tmp_path / "out", 256, 12, on_error={"slide": "fail"}))


def test_an_overlap_that_leaves_no_step_is_refused(tmp_path, slide):
    with pytest.raises(ConfigError, match=r"heads\.nuclei\.overlap: 300 px.*Set heads\.nuclei\.size to more than 300"):
        tilestream.run(wanted(slide[0], tmp_path / "out", 256, 300))


def test_a_patch_without_an_answer_is_not_computed(tmp_path, slide):
    path, drawn = slide
    assert tilestream.run(wanted(path, tmp_path / "out", form="not_finite")).exit_code == 4
    rows = as_rows(*read_shapes(tmp_path / "out"))
    assert len(rows) < len(drawn)
    table = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles")
    y, x = table.obs["y"].to_numpy(), table.obs["x"].to_numpy()
    first = drawn[0]
    near = (y < first[2]) & (y + 250 > first[0]) & (x < first[3]) & (x + 250 > first[1])
    assert near.any()
    assert np.isnan(table.obs["nuclei_count"][near]).all()
    assert np.isfinite(table.obs["nuclei_count"]).sum() > table.n_obs / 2


@pytest.mark.slow
def test_what_failed_is_done_again_on_request(tmp_path, slide, monkeypatch):
    path, _ = slide
    given = wanted(path, tmp_path / "out", form="flaky")
    assert tilestream.run(given).exit_code == 4
    monkeypatch.setenv("MENDED", "1")
    assert tilestream.run(given).exit_code == 4  # finished as it is
    assert tilestream.run(given, retry_failed=True).exit_code == 0
    tilestream.run(wanted(path, tmp_path / "clean"))
    assert (tmp_path / "out" / "a.zarr" / shapes_key("nuclei")).read_bytes() == (
        tmp_path / "clean" / "a.zarr" / shapes_key("nuclei")
    ).read_bytes()


@pytest.mark.parametrize("isolate", [False, True])
def test_a_piece_of_the_file_that_cannot_be_read_costs_its_patches_alone(tmp_path, slide, isolate):
    path, drawn = slide
    shutil.copy(path, tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[18], file.pages[0].databytecounts[18]  # rows 512 to 768, columns 512 to 768
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    given = wanted(tmp_path / "a.tif", tmp_path / "out", compute={"isolate": isolate})
    assert tilestream.run(given).exit_code == 4
    found = as_rows(*read_shapes(tmp_path / "out"))
    # Patches of 256 px every 224 px: those from row, or column, 448 to 704 on meet the piece; who owns an object is where its box ends.
    owner = [np.searchsorted(np.arange(8) * 224 + 256, drawn[:, axis], side="right") * 224 for axis in (2, 3)]
    lost = np.all([(start + 256 > 512) & (start < 768) for start in owner], axis=0)
    assert (found == truth_of(drawn[~lost])).all()
    assert 0 < lost.sum() < len(drawn) / 4
    table = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles")
    in_it = (table.obs["y"] < 768) & (table.obs["y"] > 262) & (table.obs["x"] < 768) & (table.obs["x"] > 262)
    assert np.isnan(table.obs["nuclei_count"][in_it]).all()


@pytest.mark.slow
def test_a_head_beside_an_encoder_and_one_added_later_are_the_same(tmp_path, slide):
    path, _ = slide
    both = wanted(path, tmp_path / "both", encoder="tests.support.encoders:mean_rgb")
    later = {**both, "output": {**both["output"], "path": str(tmp_path / "later")}}
    tilestream.run(both)
    tilestream.run({key: value for key, value in later.items() if key != "heads"})
    before = (tmp_path / "later" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "0" / "0").stat().st_mtime_ns
    tilestream.run(later)
    assert (tmp_path / "later" / "a.zarr" / "tables" / "tiles" / "X" / "c" / "0" / "0").stat().st_mtime_ns == before
    files = [(tmp_path / name / "a.zarr" / shapes_key("nuclei")).read_bytes() for name in ("both", "later")]
    assert files[0] == files[1]
