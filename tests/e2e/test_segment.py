"""Heads that segment, in whole runs: the same bytes whatever the cuts; and what was not computed is no class."""

import itertools

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import tilestream
from tests.support import dense_models
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.config.load import load_config
from tilestream.errors import InputError, InterruptedRunError
from tilestream.models.heads import patch_grid
from tilestream.runner.plan_command import plan_slides
from tilestream.stages.heads.draw_objects import HEADER, MARGIN, PANEL_PX
from tilestream.store.heads import labels
from tilestream.store.heads.palette import class_colours

MODELS = "tests.support.dense_models:"
HEIGHT, WIDTH = 530, 391


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_pyramid(
        tmp_path_factory.mktemp("images") / "a.tif", make_image(HEIGHT, WIDTH, 1), compression="deflate", levels=1, mpp=0.5
    )


def segment(image, output, /, head, **sections):
    given = {"encoder": "none", "tiles": {"size": 128}, "heads": {"kinds": {"kind": "segment", **head}}, **sections}
    return tilestream.run(config(image, output, **given))


def level(output, name="0"):
    return zarr.open_array(output / "a.zarr" / "labels" / "kinds" / name, mode="r")[:]


def bytes_of(output):
    folder = output / "a.zarr"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


UNET = {"model": MODELS + "small_unet", "size": 96, "overlap": 32, "save": ["labels", "probabilities"]}


def test_workers_and_cuts_leave_the_same_bytes_for_a_model_that_is_blended(image, tmp_path, monkeypatch):
    monkeypatch.setattr(patch_grid, "BLOCK_SIDE", 200)
    segment(image, tmp_path / "one", UNET)
    monkeypatch.setattr("tilestream.stages.heads.segment.SegmentKind.together", 1)
    segment(image, tmp_path / "many", UNET)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "many")


@pytest.mark.parametrize("blend", ["hann", "cosine", "crop"])
def test_patches_meet_as_the_config_says(image, tmp_path, blend):
    """Beside a plain sum over a canvas of the whole image."""
    head = {"model": MODELS + "values_unet", "size": 96, "overlap": 32, "classes": ["a", "b", "c", "d"], "blend": blend}
    segment(image, tmp_path / "out", head)
    step, margin, model = 64, 16, dense_models.small_unet()
    ramp = {
        "hann": np.sin(np.pi * (np.arange(32) + 0.5) / 64) ** 2,
        "cosine": 0.5 - 0.5 * np.cos(np.pi * np.arange(1, 33) / 33),
        "crop": np.arange(32) >= 16,
    }
    along = np.concatenate([ramp[blend], np.ones(32), 1 - ramp[blend]])
    pixels = np.full((HEIGHT + 2 * 96, WIDTH + 2 * 96, 3), 255, np.uint8)
    pixels[margin : margin + HEIGHT, margin : margin + WIDTH] = make_image(HEIGHT, WIDTH, 1)
    sums = np.zeros((5, *pixels.shape[:2]))
    for y in range(0, HEIGHT, step):
        for x in range(0, WIDTH, step):
            with torch.inference_mode():
                out = model(torch.from_numpy(pixels[y : y + 96, x : x + 96]).permute(2, 0, 1)[None])[0].double().numpy()
            weights = along[:, None] * along
            sums[:, y : y + 96, x : x + 96] += np.concatenate([out * weights, weights[None]])
    wanted = (sums[:4] / np.maximum(sums[4], 1e-9))[:, margin : margin + HEIGHT, margin : margin + WIDTH]
    assert np.abs(level(tmp_path / "out") - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_run_that_was_cut_short_ends_with_the_same_bytes(image, tmp_path, monkeypatch):
    monkeypatch.setattr(patch_grid, "BLOCK_SIDE", 200)
    segment(image, tmp_path / "whole", UNET)
    calls, written = itertools.count(1), []

    def dying(*args):
        if next(calls) > 2:
            raise KeyboardInterrupt
        written.append(args[2])
        return labels.write_unit(*args)

    with monkeypatch.context() as patched:
        patched.setattr("tilestream.stages.heads.dense.unit_writer.write_unit", dying)
        with pytest.raises((KeyboardInterrupt, InterruptedRunError)):
            segment(image, tmp_path / "cut", UNET)
    assert len(written) == 2
    before = {path: data for path, data in bytes_of(tmp_path / "cut").items() if "/0/c/" in str(path)}
    segment(image, tmp_path / "cut", UNET)
    after = bytes_of(tmp_path / "cut")
    assert before
    assert all(after[path] == data for path, data in before.items())
    assert after == bytes_of(tmp_path / "whole")


def test_labels_are_ome_zarr_with_names_and_a_pyramid_of_every_second_pixel(tmp_path):
    image = write_pyramid(tmp_path / "a.tif", make_image(700, 900, 2), compression="deflate", levels=1, mpp=0.5)
    segment(image, tmp_path / "out", {"model": MODELS + "dilated41", "size": 256})
    group = zarr.open_group(tmp_path / "out" / "a.zarr" / "labels", mode="r")
    assert group.attrs["ome"]["labels"] == ["kinds"]
    about = group["kinds"].attrs["ome"]
    assert [each["path"] for each in about["multiscales"][0]["datasets"]] == ["0", "1"]
    assert about["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"] == [1.0, 1.0]
    assert [each["class"] for each in about["image-label"]["properties"]] == ["not computed", "class0", "class1", "class2", "class3"]
    np.testing.assert_array_equal(level(tmp_path / "out", "1"), level(tmp_path / "out")[::2, ::2])
    assert level(tmp_path / "out").shape == (700, 900)


def read_picture(path):
    with Image.open(path) as file:
        return file.convert("RGB")


def test_its_picture_shows_each_class_at_its_place(image, tmp_path):
    segment(image, tmp_path / "out", {"model": MODELS + "counting", "size": 128})
    found, slide = level(tmp_path / "out"), tilestream.open(tmp_path / "out" / "a.zarr")
    picture, overview = (np.asarray(read_picture(tmp_path / "out" / "a.zarr" / name)) for name in ("shapes/kinds.png", "overview.png"))
    colours = np.array([(238, 238, 238), *class_colours(len(slide.head_answer("kinds").classes))])
    height, width = (round(side * PANEL_PX / max(found.shape)) for side in found.shape)
    panel = picture[2 * HEADER + 6 :][:height, width + 2 * MARGIN :][:, :width]
    row, col = ((np.arange(count) + 0.5) * side / count for count, side in zip((height, width), found.shape, strict=True))
    np.testing.assert_array_equal(panel, colours[found[row.astype(int)[:, None], col.astype(int)]])
    assert abs(overview.shape[1] - width - 2 * MARGIN) < MARGIN  # one panel: there is no embedding to be shown


def test_what_holds_no_tile_is_not_computed_and_takes_no_space(tmp_path):
    image = write_pyramid(tmp_path / "a.tif", make_image(600, 600, 1), compression="deflate", levels=1, mpp=0.5)
    mask = np.zeros((600, 600), np.uint8)
    mask[200:330, 200:330] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    tiles = {"size": 32, "tissue": {"mask": str(tmp_path / "mask.png")}}
    segment(image, tmp_path / "out", {"model": MODELS + "counting", "size": 64}, tiles=tiles)
    found = level(tmp_path / "out")
    assert (found[220:310, 220:310] > 0).all()
    assert not found[:100].any()
    assert not found[450:].any()
    assert (found > 0).mean() < 0.2


@pytest.mark.parametrize("blend", [{"overlap": 32}, {}])
def test_failed_patches_and_values_that_are_not_finite_are_not_computed(tmp_path, blend):
    pixels = make_image(400, 400, 1)
    pixels[128:136, 256:264] = 7  # by which the model is told to fail
    image = write_pyramid(tmp_path / "a.tif", pixels, compression="deflate", levels=1, mpp=0.5)
    model = "small_unet_that_fails" if blend else "dilated_that_fails"
    summary = segment(image, tmp_path / "out", {"model": MODELS + model, "size": 128, **blend})
    assert summary.exit_code == 4
    assert summary.slides[0].unanswered["kinds"] >= 1
    found = level(tmp_path / "out")
    missing = found == 0
    assert missing[128:136, 256:264].all()
    assert 0 < missing.mean() < 0.5
    assert set(np.unique(found)) <= {0, 1, 2, 3, 4}
    with pytest.raises(InputError, match=r"patch \d+,\d+ failed: the head's output is not finite"):
        raise InputError(
            segment(image, tmp_path / "no", {"model": MODELS + model, "size": 128, **blend}, on_error={"tile": "fail"}).slides[0].error
        )


def test_an_image_that_is_too_coarse_is_refused(image, tmp_path):
    summary = segment(image, tmp_path / "out", {"model": MODELS + "dilated41", "size": 128, "mpp": 0.25})
    assert "heads.kinds.mpp is 0.25, but the finest level has 0.5" in summary.slides[0].error


def test_a_finer_grid_than_that_of_the_tiles_is_read_where_a_head_asks_for_it(image, tmp_path):
    segment(image, tmp_path / "out", {"model": MODELS + "dilated41", "size": 128, "mpp": 1.0})
    assert level(tmp_path / "out").shape == (-(-HEIGHT // 2), -(-WIDTH // 2))


def test_the_projection_holds_what_is_left(image, tmp_path):
    given = config(image, tmp_path / "out", encoder="none", tiles={"size": 128}, heads={"kinds": {"kind": "segment", **UNET}})
    (slide,) = plan_slides(load_config(given)).slides
    tilestream.run(given)
    stored = sum(path.stat().st_size for path in (tmp_path / "out" / "a.zarr" / "labels").rglob("*") if path.is_file())
    assert stored <= slide.heads["kinds"]
