"""The whole line on real and made slides: right tiles, right pixels, right places."""

import math

import anndata
import numpy as np
import openslide
import pytest
import tifffile
import zarr

import tilestream
from tests.support.images import make_image, write_ome_zarr, write_pyramid, write_svs
from tests.support.runs import config, embed, newest_record, opened, same_store


def white_means(path, y, x, side):
    """Mean colours of squares by OpenSlide itself, alpha on white in float64."""
    with openslide.OpenSlide(str(path)) as slide:
        means = []
        for top, left in zip(y, x, strict=True):
            rgba = np.asarray(slide.read_region((int(left), int(top)), 0, (side, side))).astype(np.float64)
            alpha = rgba[..., 3:] / 255
            means.append((rgba[..., :3] * alpha + 255 * (1 - alpha)).mean(axis=(0, 1)))
    return np.array(means)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-387.ndpi", "gcp_jpeg.dcm", "boxes_0.dcm"])
def test_tiles_have_openslides_own_means_at_the_contracts_places(slides, tmp_path, name):
    summary = embed(slides / name, tmp_path / "out")
    store = opened(tmp_path / "out", summary.slides[0].id)
    with openslide.OpenSlide(str(slides / name)) as slide:
        width, height = slide.dimensions
    rows, cols = math.ceil(height / 224), math.ceil(width / 224)
    obs = store.obs
    assert len(obs) == rows * cols
    assert obs["row"].tolist() == [r for r in range(rows) for _ in range(cols)]
    assert obs["col"].tolist() == [c for _ in range(rows) for c in range(cols)]
    assert (obs["y"] == obs["row"] * 224).all()
    assert (obs["x"] == obs["col"] * 224).all()
    hanging = (obs["y"] + 224 > height) | (obs["x"] + 224 > width)
    assert (obs["status"] == np.where(hanging, "padded", "ok")).all()
    assert np.abs(store.embeddings[:] - white_means(slides / name, obs["y"], obs["x"], 224)).max() < 0.51


@pytest.mark.slow
def test_one_image_in_four_containers_gives_the_same_embeddings(tmp_path):
    image = make_image(1000, 1400, seed=3)
    write_pyramid(tmp_path / "tiled.tif", image, compression="deflate", levels=1, mpp=0.5)
    tifffile.imwrite(tmp_path / "strips.tif", image, photometric="rgb", rowsperstrip=33, compression="lzw")
    write_ome_zarr(tmp_path / "zarred.ome.zarr", image, version="0.5")
    write_svs(tmp_path / "copy.svs", image, mpp=0.5, levels=1, compression="lzw", photometric="rgb", subsampling=None)
    names = ["tiled.tif", "strips.tif", "zarred.ome.zarr", "copy.svs"]
    summary = embed([tmp_path / n for n in names], tmp_path / "out", encoder={"name": "vit_tiny_patch16_224", "precision": "fp32"})
    stores = [opened(tmp_path / "out", result.id) for result in summary.slides]
    assert stores[0].embeddings.shape == (5 * 7, 192)
    assert stores[3].source["vendor"] == "aperio"
    assert all(same_store(stores[0], other) for other in stores[1:])


def shrink(image, factor):
    """Area average of a whole image to its size divided by `factor`, independent of the package's own."""
    out = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        size = int(length / factor)
        low = np.arange(size)[:, None] * (length / size)
        pixel = np.arange(length)
        weight = np.clip(np.minimum(pixel + 1, low + length / size) - np.maximum(pixel, low), 0, None) * size / length
        out = np.moveaxis(np.tensordot(weight, out, axes=(1, axis)), 0, axis)
    return (out + 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("downsamples", "level"), [((2, 4), 1), ((), 0), ((4,), 0), ((2.001, 4.016), 1)], ids=["2 and 4", "none", "4 only", "2.001 and 4.016"]
)
def test_resampled_tiles_agree_with_an_area_average_of_level_0(tmp_path, downsamples, level):
    height, width = 2008, 2600
    image = make_image(height, width, seed=5)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for k, factor in enumerate((1, *downsamples)):
            pixels = image if k == 0 else shrink(image, factor)
            resolution = (1e4 / 0.25 / factor, 1e4 / 0.25 / factor)
            tif.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                subfiletype=int(k > 0),
                resolution=resolution,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"level": None, "mpp": 0.5, "size": 224})
    store = opened(tmp_path / "out", "a")
    assert store.source["level"] == level
    obs = store.obs
    assert (obs["y"] == [round(r * 448) for r in obs["row"]]).all()
    assert (obs["x"] == [round(c * 448) for c in obs["col"]]).all()
    padded = np.full((2240 + 448, 2688 + 448, 3), 255.0)
    padded[:height, :width] = image
    expected = np.array([padded[y : y + 448, x : x + 448].mean(axis=(0, 1)) for y, x in zip(obs["y"], obs["x"], strict=True)])
    assert np.abs(store.embeddings[:] - expected).max() < 1.5


def test_a_fractional_scale_never_drifts(tmp_path):
    image = make_image(1900, 1700, seed=6)
    write_pyramid(tmp_path / "a.tif", image, compression="deflate", levels=1, mpp=0.2463)
    embed(tmp_path / "a.tif", tmp_path / "out", tiles={"level": None, "mpp": 0.5, "size": 100})
    obs = opened(tmp_path / "out", "a").obs
    scale = 0.5 / opened(tmp_path / "out", "a").source["mpp"]
    assert (obs["y"] == [round(r * 100 * scale) for r in obs["row"]]).all()
    assert (obs["x"] == [round(c * 100 * scale) for c in obs["col"]]).all()


def test_tiles_are_neither_turned_nor_shifted(tmp_path):
    image = make_image(900, 1100, seed=8)
    write_pyramid(tmp_path / "a.tif", image, compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out", encoder="tests.support.encoders:corners", tiles={"edge": "drop"})
    store = opened(tmp_path / "out", "a")
    for (y, x), seen in zip(store.positions, store.embeddings[:], strict=True):
        assert np.array_equal(seen.reshape(3, 4).T, image[[y, y, y + 223, y + 223], [x, x + 223, x, x + 223]])


def test_anndata_opens_a_store_as_it_is(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(700, 900, seed=1), compression="deflate", levels=1, mpp=0.5)
    embed(
        tmp_path / "a.tif", tmp_path / "out", encoder="vit_tiny_patch16_224", pool="mean", output={"dtype": "float16"},
        context={"window": 4, "depth": 2, "heads": 3}, compute={"shard_tiles": 8},
    )  # fmt: skip
    table = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles")
    assert table.X.dtype == np.float16
    assert table.shape == (4 * 5, 192)
    assert list(table.obs.columns) == ["row", "col", "y", "x", "tissue", "status", "slide"]
    assert np.array_equal(table.obsm["spatial"], table.obs[["x", "y"]].to_numpy() + 112)
    assert table.obsm["context"].shape == (20, 192)
    assert np.isfinite(table.obsm["context"]).all()
    slide = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "slide")
    assert slide.shape == (1, 192)
    assert np.allclose(slide.X[0], table.obsm["context"].astype(np.float64).mean(axis=0), atol=2e-3)
    x = zarr.open_array(str(tmp_path / "out" / "a.zarr"), path="tables/tiles/X", mode="r")
    assert x.shards == (8, 192)
    assert (tmp_path / "out" / "a.zarr" / "overview.png").stat().st_size > 0


def test_python_reads_what_it_wrote(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(500, 700, seed=1), compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out", pool="max")
    store = tilestream.open(tmp_path / "out" / "a.zarr")
    assert np.array_equal(store.to_dask().compute(), store.embeddings[:])
    assert np.array_equal(store.to_anndata().X, store.embeddings[:])
    assert np.array_equal(store.slide_vector, store.embeddings[:].max(axis=0))
    assert store.positions.tolist()[:2] == [[0, 0], [0, 224]]
    assert store.recipe["tiles"]["size"] == 224
    assert "12 tiles x 3" in repr(store)


def test_an_image_without_tissue_is_finished_with_no_rows(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", np.full((2000, 2000, 3), 245, np.uint8), photometric="rgb", tile=(256, 256))
    summary = embed(
        tmp_path / "white.tif",
        tmp_path / "out",
        tiles={"tissue": "otsu"},
        pool="mean",
        context={"window": 4, "depth": 2, "heads": 1, "position": "none"},
    )
    assert summary.exit_code == 0
    assert (summary.slides[0].status, summary.slides[0].tiles, summary.slides[0].note) == ("done", 0, "no tissue found")
    assert anndata.read_zarr(tmp_path / "out" / "white.zarr" / "tables" / "tiles").shape == (0, 3)


def test_a_tile_that_cannot_be_read_is_nan_with_a_status(slides, tmp_path):
    summary = embed([slides / "CMU-1-Small-Region.svs", slides / "badtile.svs"], tmp_path / "out")
    assert summary.exit_code == 4
    sound, bad = (opened(tmp_path / "out", r.id) for r in summary.slides)
    obs = bad.obs
    touching = (obs["x"] < 1440) & (obs["x"] + 224 > 1200) & (obs["y"] < 960) & (obs["y"] + 224 > 720)
    assert touching.sum() == 4 or touching.sum() == 6
    assert ((obs["status"] == "decode_error") == touching).all()
    assert np.isnan(bad.embeddings[:][touching]).all()
    assert np.array_equal(bad.embeddings[:][~touching], sound.embeddings[:][~touching])
    assert summary.slides[1].failed_tiles == touching.sum()
    assert len(summary.slides[1].tile_errors) == touching.sum()


def test_a_result_that_is_not_finite_is_never_a_good_row(slides, tmp_path):
    summary = embed(slides / "CMU-1-Small-Region.svs", tmp_path / "out", encoder="tests.support.encoders:nans")
    store = opened(tmp_path / "out", "CMU-1-Small-Region")
    failed = store.obs["status"] == "nonfinite"
    assert 0 < failed.sum() < len(failed)
    assert np.array_equal(failed, np.isnan(store.embeddings[:]).any(axis=1))
    assert summary.exit_code == 4


def test_a_rerun_does_nothing_and_a_missing_shard_is_redone(slides, tmp_path):
    path, out = slides / "CMU-1-Small-Region.svs", tmp_path / "out"
    compute = {"compute": {"shard_tiles": 40}}
    embed(path, out, **compute)
    first = opened(out, "CMU-1-Small-Region").embeddings[:]
    again = embed(path, out, **compute)
    assert (again.new_tiles, again.slides[0].status) == (0, "already done")
    folder = out / "CMU-1-Small-Region.zarr"
    (folder / ".tilestream" / "complete.json").unlink()
    (folder / ".tilestream" / "shards" / "tiles-000002.json").unlink()
    (folder / "tables" / "tiles" / "X" / "c" / "2" / "0").write_bytes(b"torn")
    mended = embed(path, out, **compute)
    assert mended.new_tiles == 40
    assert np.array_equal(opened(out, "CMU-1-Small-Region").embeddings[:], first)


def test_restart_starts_over(slides, tmp_path):
    path, out = slides / "CMU-1-Small-Region.svs", tmp_path / "out"
    embed(path, out)
    summary = tilestream.run(config(path, out, tiles={"stride": 300}), restart=True)
    assert summary.new_tiles == math.ceil(2967 / 300) * math.ceil(2220 / 300)


def test_shards_of_a_job_array_share_one_output_without_doing_a_slide_twice(tmp_path):
    for k in range(5):
        write_pyramid(tmp_path / f"s{k}.tif", make_image(300, 300, seed=k), compression="deflate", levels=1, mpp=0.5)
    given = config(tmp_path / "s*.tif", tmp_path / "out")
    summaries = [tilestream.run(given, shard=(i, 2)) for i in range(2)]
    assert [[s.id for s in summary.slides] for summary in summaries] == [["s0", "s2", "s4"], ["s1", "s3"]]
    assert len(list((tmp_path / "out").glob("*.zarr"))) == 5


def test_the_record_of_a_run_says_what_was_done(slides, tmp_path):
    embed(slides / "CMU-1-Small-Region.svs", tmp_path / "out")
    told = newest_record(tmp_path / "out")
    assert told["config"]["tiles"]["size"] == 224
    assert told["slides"][0]["status"] == "done"
    assert sum(told["slides"][0]["counts"].values()) == told["tiles"] == 140
    assert {"read", "compute", "write"} <= set(told["slides"][0]["seconds"])
    assert told["peak_bytes"] > 0
    assert {"python", "torch", "zarr"} <= set(told["versions"])


def test_one_bad_slide_does_not_stop_the_others(slides, tmp_path):
    names = ["CMU-1-Small-Region.svs", "unopenable.tiff", "zero_gi.tif", "boxes.tiff"]
    summary = embed([*(slides / n for n in names), tmp_path / "missing.svs"], tmp_path / "out")
    assert summary.exit_code == 4
    assert [s.status for s in summary.slides] == ["done", "refused", "refused", "done", "refused"]
    assert "no such file" in summary.slides[-1].error


def test_patch_tokens_are_stored_when_asked_for(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(450, 450, seed=1), compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out", encoder={"name": "patch_embed", "args": {"dim": 24}}, output={"save": ["tiles", "tokens"]})
    tokens = zarr.open_array(str(tmp_path / "out" / "a.zarr"), path="tokens", mode="r")
    assert tokens.shape == (9, 196, 24)
    assert np.allclose(tokens[:].mean(axis=1), opened(tmp_path / "out", "a").embeddings[:], atol=1e-5)


def test_context_over_patch_tokens_crosses_tile_borders(tmp_path):
    image = make_image(448, 448, seed=2)
    changed = image.copy()
    changed[:16, 208:224] = 0  # the last patch of the first row of tile (0, 0); its window reaches into tile (0, 1)
    for name, pixels in (("a", image), ("b", changed)):
        write_pyramid(tmp_path / f"{name}.tif", pixels, compression="deflate", levels=1, mpp=0.5)
    embed(
        [tmp_path / "a.tif", tmp_path / "b.tif"],
        tmp_path / "out",
        encoder={"name": "patch_embed", "args": {"dim": 24}},
        context={"window": 4, "depth": 2, "heads": 3},
    )
    a, b = (opened(tmp_path / "out", name) for name in "ab")
    moved = np.abs(a.context[:] - b.context[:]).max(axis=1) > 1e-7
    assert moved.tolist() == [True, True, False, False]
    assert (np.abs(a.embeddings[:] - b.embeddings[:]).max(axis=1) > 1e-7).tolist() == [True, False, False, False]
