"""Encoders of more than three bands: the rows of a run are those of a loop over the array that rasterio reads."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio

import tilestream
from tests.support.rasters import OVERLAPPING, QUARTERS, cut, merged, write_raster
from tests.support.resuming import start, wait_for_shard
from tests.support.runs import bytes_of, config, opened
from tilestream.errors import OutputError

NODATA = 7
RNG = np.random.default_rng(3)
DEEP = RNG.integers(8, 6000, (300, 420, 6)).astype(np.uint16)
DEEP[100:190, 200:260] = NODATA  # across the borders of files
DEEP[40:60, 40:90, 2] = NODATA  # one band alone
MEAN, STD = (1087, 1342, 1433, 2734, 1958, 1363), (2248, 2179, 2178, 1850, 1242, 1049)
SOURCE = {"channels": [0, 1, 2, 3, 4, 5], "normalise": {"mean": list(MEAN), "std": list(STD)}}
SIDE = 64


def given(slides, output, /, **sections):
    base = {"tiles": {"size": SIDE, "level": 0, "tissue": "none"}, "encoder": "tests.support.encoders:band_corners", "source": SOURCE}
    return config(slides, output, **{**base, "compute": {"shard_tiles": 16}, **sections})


def weights(start, step, count, length):
    """(count, length): the part of each pixel in each of `count` bins of `step` pixels from `start` on."""
    low = start + np.arange(count)[:, np.newaxis] * step
    at = np.arange(length)
    return np.clip(np.minimum(low + step, at + 1) - np.maximum(low, at), 0, None)


def dense(path, bands=(1, 2, 3, 4, 5, 6), scale=1.0, offset=0.0, mean=MEAN, std=STD, step=1.0):
    """What `BandCorners` gives of each tile of a raster, by its place: numpy on what rasterio reads."""
    with rasterio.open(path) as file:
        samples = file.read(list(bands)).astype(np.float64)
        there = np.isfinite(samples) & (samples != (np.nan if file.nodata is None else file.nodata))
    numbers = [np.reshape(each, (-1, 1, 1)) if np.ndim(each) else each for each in (scale, offset, mean, std)]
    values = np.where(there, (samples * numbers[0] + numbers[1] - numbers[2]) / numbers[3], 0)
    height, width = values.shape[1:]
    rows = {}
    for row in range(int(np.ceil(height / (SIDE * step)))):
        for col in range(int(np.ceil(width / (SIDE * step)))):
            down = weights(round(row * SIDE * step), step, SIDE, height)
            across = weights(round(col * SIDE * step), step, SIDE, width)
            share = down @ there.astype(float) @ across.T
            tile = np.divide(down @ values @ across.T, share, out=np.zeros_like(share), where=share > 1e-9)
            rows[row, col] = np.concatenate([tile.mean(axis=(1, 2)), tile[:, [0, 0, -1, -1], [0, -1, 0, -1]].ravel()])
    return rows


def assert_rows(output, slide, wanted):
    store = opened(output, slide)
    found = {(row, col): vector for row, col, vector in zip(store.obs.row, store.obs.col, store.embeddings[:], strict=True)}
    assert found.keys() == wanted.keys()
    for place, vector in wanted.items():
        np.testing.assert_allclose(found[place], vector, rtol=2e-5, atol=2e-5, err_msg=str(place))


@pytest.mark.parametrize("boxes", [QUARTERS, OVERLAPPING])
@pytest.mark.parametrize("step", [1, 2, 2.5])
def test_rows_are_those_of_a_loop_over_the_merged_raster(tmp_path, boxes, step):
    paths = cut(DEEP, boxes, tmp_path / "parts", nodata=NODATA)
    whole = merged(paths, tmp_path / "whole.tif")
    tiles = {"level": 0} if step == 1 else {"level": None, "mpp": 10e6 * step}
    for slide in (f"mosaic://{tmp_path / 'parts'}", whole):
        assert tilestream.run(given(slide, tmp_path / "out", tiles={"size": SIDE, "tissue": "none", **tiles})).exit_code == 0
    wanted = dense(whole, step=step)
    assert_rows(tmp_path / "out", "whole", wanted)
    assert_rows(tmp_path / "out", "parts", wanted)
    one, other = (opened(tmp_path / "out", name).embeddings[:] for name in ("whole", "parts"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", "float64", "int32"])
def test_samples_of_any_type_and_scale_are_read(tmp_path, dtype):
    made = RNG.normal(60, 30, (150, 200, 4)).clip(0, 250).astype(dtype)
    nodata = float("nan") if dtype == "float32" else 0
    made[:30, 50:90] = nodata
    path = write_raster(tmp_path / "a.tif", made, nodata=nodata, interleave="band", photometric="MINISBLACK", alpha="no")
    bands = {
        f"b{k}": {"common": name, "scale": 0.5, "offset": -k, "mean": 20 + k, "std": 10 + k}
        for k, name in enumerate(("blue", "green", "red", "nir"))
    }
    (tmp_path / "bands.json").write_text(json.dumps(bands))
    source = {"bands": str(tmp_path / "bands.json"), "channels": ["nir", "red", "blue"], "normalise": "bands"}
    encoder = {"name": "tests.support.encoders:band_corners", "args": {"bands": ["nir", "red", "blue"]}}
    assert tilestream.run(given(path, tmp_path / "out", source=source, encoder=encoder)).exit_code == 0
    picked = np.array([3, 2, 0])
    assert_rows(tmp_path / "out", "a", dense(path, picked + 1, 0.5, -picked, 20 + picked, 10 + picked))


@pytest.mark.parametrize("compute", [{"isolate": True}, {"batch_size": 3, "shard_tiles": 5, "threads": 1}])
def test_rows_do_not_depend_on_who_reads_them(tmp_path, compute):
    path = write_raster(tmp_path / "a.tif", DEEP[:200, :300], nodata=NODATA)
    assert tilestream.run(given(path, tmp_path / "out", compute=compute)).exit_code == 0
    assert_rows(tmp_path / "out", "a", dense(path))


def test_a_changed_deviation_is_another_recipe(tmp_path):
    path = write_raster(tmp_path / "a.tif", DEEP[:100, :150], nodata=NODATA)
    tilestream.run(given(path, tmp_path / "out"))
    before = bytes_of(tmp_path / "out" / "a.zarr" / "tables")
    assert tilestream.run(given(path, tmp_path / "out")).slides[0].status == "already done"
    changed = {**SOURCE, "normalise": {"mean": list(MEAN), "std": [*STD[:5], 1050]}}
    with pytest.raises(OutputError, match=r"source\.normalise\.std.* 1049.* 1050"):
        tilestream.run(given(path, tmp_path / "out", source=changed))
    assert bytes_of(tmp_path / "out" / "a.zarr" / "tables") == before
    assert tilestream.run(given(path, tmp_path / "out", source=changed), restart=True).exit_code == 0
    assert_rows(tmp_path / "out", "a", dense(path, std=(*STD[:5], 1050)))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.tile(DEEP, (1, 2, 1)), nodata=NODATA)
    slow = given(path, tmp_path / "out", encoder="tests.support.encoders:slow_band_corners", compute={"shard_tiles": 16, "batch_size": 2})
    (tmp_path / "c.yaml").write_text(json.dumps(slow))
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL  # it had not ended by itself
    assert tilestream.run(slow).exit_code == 0
    undisturbed = given(path, tmp_path / "plain", encoder="tests.support.encoders:slow_band_corners", compute=slow["compute"])
    tilestream.run(undisturbed)
    np.testing.assert_array_equal(opened(tmp_path / "out", "a").embeddings[:], opened(tmp_path / "plain", "a").embeddings[:])
    assert_rows(tmp_path / "out", "a", dense(path))


VIT = {"name": "vit_tiny_patch16_224", "args": {"bands": 6, "img_size": SIDE, "output": "tokens"}}


def test_tokens_of_bands_are_mixed_alike_whatever_the_shards(tmp_path):
    path = write_raster(tmp_path / "a.tif", DEEP[:200, :300], nodata=NODATA)
    context = {"window": 4, "depth": 2, "heads": 3, "exact": True}
    found = []
    for name, shards, schedule in (("whole", 2048, "dense"), ("streamed", 4, "row_bands")):
        compute, mixed = {"shard_tiles": shards}, {**context, "schedule": schedule}
        assert tilestream.run(given(path, tmp_path / name, encoder=VIT, context=mixed, compute=compute)).exit_code == 0
        found.append(opened(tmp_path / name, "a"))
    np.testing.assert_array_equal(found[0].embeddings[:], found[1].embeddings[:])
    np.testing.assert_array_equal(found[0].context[:], found[1].context[:])


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_rows(tmp_path):
    path = write_raster(tmp_path / "a.tif", DEEP, nodata=NODATA)
    compute = {"scheduler": "local", "workers": 2, "threads": 1, "shard_tiles": 8}
    assert tilestream.run(given(path, tmp_path / "out", compute=compute)).exit_code == 0
    assert_rows(tmp_path / "out", "a", dense(path))


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [{"level": 0}, {"level": None, "mpp": 25e6}, {"level": 0, "stride": 32}])
def test_the_projection_holds_for_values(tmp_path, tiles):
    """In a process of its own, whose peak is that of the run."""
    many = np.tile(DEEP, (4, 3, 2))
    path = write_raster(tmp_path / "a.tif", many, nodata=NODATA, blockxsize=256, blockysize=256)
    source = {"channels": list(range(12)), "normalise": {"mean": [1000] * 12, "std": [500] * 12}}
    encoder = {"name": "tests.support.encoders:band_corners", "args": {"bands": 12}}
    told = given(path, tmp_path / "out", source=source, encoder=encoder, tiles={**tiles, "size": 128}, compute={"shard_tiles": 2048})
    script = "import json, sys, tilestream; done = tilestream.run(json.loads(sys.argv[1])); print(done.peak_bytes, done.projected_bytes)"
    done = subprocess.run([sys.executable, "-c", script, json.dumps(told)], capture_output=True, text=True, check=True)
    peak, projected = map(int, done.stdout.split()[-2:])
    assert peak < projected < 3 * peak
