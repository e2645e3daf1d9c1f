"""Models that see everything: where patches meet, nothing is to be seen; with a naive stitching it is."""

import numpy as np
import pytest
import torch
import zarr

import tilestream
from tests.support import library_models
from tests.support.dense_models import small_unet
from tests.support.images import write_pyramid
from tests.support.runs import config

SIDE, SIZE, OVERLAP = 768, 192, 64


def steepness(values, step, first):
    """Mean difference of neighbours across borders at `first + k * step`, over that elsewhere; along both axes."""
    across, within = [], []
    for axis in (1, 2):
        found = np.abs(np.diff(values.astype(np.float64), axis=axis)).mean(axis=(0, 3 - axis))
        at = np.arange(1, len(found) + 1)
        inside = (at > 32) & (at < len(found) - 32)
        borders = (at - first) % step == 0
        across.append(found[borders & inside])
        within.append(found[~borders & inside])
    return np.concatenate(across).mean() / np.concatenate(within).mean()


def made_image(side):
    """(side, side, 3) uint8, equally rough everywhere."""
    coarse = torch.from_numpy(np.random.default_rng(0).integers(60, 240, (side // 8, side // 8, 3))).permute(2, 0, 1)[None]
    smooth = torch.nn.functional.interpolate(coarse.float(), size=(side, side), mode="bilinear")
    return smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)


def check_seams(folder, model, factory, side, size, overlap):
    """Run the head, and compare with one pass over the image, and with patches without overlap put side by side."""
    pixels, step = made_image(side), size - overlap
    image = write_pyramid(folder / "a.tif", pixels, compression="deflate", levels=1, mpp=0.5)
    head = {"kind": "segment", "model": factory, "size": size, "overlap": overlap, "classes": ["a", "b", "c", "d"]}
    assert tilestream.run(config(image, folder / "out", encoder="none", tiles={"size": 128}, heads={"kinds": head})).exit_code == 0
    found = zarr.open_array(folder / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    stitched = np.zeros_like(found)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        whole = model(image)[0].numpy()
        for y in range(0, side, step):
            for x in range(0, side, step):
                stitched[:, y : y + step, x : x + step] = model(image[..., y : y + step, x : x + step])[0].numpy()
    ends = [overlap // 2, step - overlap // 2, 0]  # where ramps begin and end, and where cores, and so blocks, meet
    # A model is not equally steep everywhere: one pass over the whole image says how steep it is there.
    seams = [steepness(found, step, first) / steepness(whole, step, first) for first in ends]
    assert max(abs(seam - 1) for seam in seams) < 0.02, seams
    assert steepness(stitched, step, 0) / steepness(whole, step, 0) > 1.02


def test_no_seam_where_patches_of_a_unet_meet(tmp_path):
    check_seams(tmp_path, small_unet(), "tests.support.dense_models:values_unet", SIDE, SIZE, OVERLAP)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["smp_unet", "segformer"])
def test_no_seam_where_patches_of_a_model_of_a_library_meet(tmp_path, name):
    check_seams(tmp_path, getattr(library_models, name)(), f"tests.support.library_models:{name}", 1280, 512, 256)
