"""Models that see everything: where patches meet, nothing is to be seen; with a naive stitching it is."""

import numpy as np
import pytest
import torch
import zarr

import tilestream
from tests.support.dense_models import small_unet
from tests.support.images import write_pyramid
from tests.support.runs import config

SIDE, SIZE, OVERLAP = 768, 192, 64
STEP = SIZE - OVERLAP


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


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 240, (SIDE // 8, SIDE // 8, 3))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse).permute(2, 0, 1)[None].float(), size=(SIDE, SIDE), mode="bilinear")
    return smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)


def test_no_seam_where_patches_of_a_unet_meet(tmp_path, pixels):
    image = write_pyramid(tmp_path / "a.tif", pixels, compression="deflate", levels=1, mpp=0.5)
    head = {
        "kind": "segment",
        "model": "tests.support.dense_models:values_unet",
        "size": SIZE,
        "overlap": OVERLAP,
        "classes": ["a", "b", "c", "d"],
    }
    tilestream.run(config(image, tmp_path / "out", encoder="none", tiles={"size": 128}, heads={"kinds": head}))
    found = zarr.open_array(tmp_path / "out" / "a.zarr" / "labels" / "kinds" / "0", mode="r")[:]
    model, stitched = small_unet(), np.zeros_like(found)
    with torch.inference_mode():
        whole = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
        for y in range(0, SIDE, STEP):
            for x in range(0, SIDE, STEP):
                part = torch.from_numpy(pixels[y : y + STEP, x : x + STEP]).permute(2, 0, 1)[None]
                stitched[:, y : y + STEP, x : x + STEP] = model(part)[0].numpy()
    ends = [OVERLAP // 2, STEP - OVERLAP // 2, 0]  # where ramps begin and end, and where cores meet
    # The image is not equally steep everywhere: one pass over all of it says how steep it is there.
    seams = [steepness(found, STEP, first) / steepness(whole, STEP, first) for first in ends]
    assert max(abs(seam - 1) for seam in seams) < 0.02, seams
    assert steepness(stitched, STEP, 0) / steepness(whole, STEP, 0) > 1.02
