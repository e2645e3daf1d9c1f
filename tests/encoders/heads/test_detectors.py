"""Detectors that come with the package: the net of three branches from its folder, and the classical one."""

import json

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import torch
from safetensors.torch import save_file
from torch import nn

import tilestream
from tests.support.images import write_pyramid
from tests.support.runs import config
from tilestream.config.heads import Head
from tilestream.encoders.heads.classical import nuclei
from tilestream.encoders.heads.load import load_head
from tilestream.errors import ConfigError
from tilestream.models.heads.objects.detections import find_objects, split_outputs
from tilestream.models.heads.objects.three_branch import ThreeBranch

ABOUT = {"detector": "three_branch", "classes": ["tumour", "stroma"], "width": 4, "depth": 2, "size": 64, "overlap": 16, "context": 8}


def random_net(classes=2, width=4, depth=2):
    torch.manual_seed(0)
    net = ThreeBranch(classes, width, depth).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "net"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(ABOUT))
    save_file(random_net().state_dict(), path / "model.safetensors")
    return path


def head(folder, **more):
    return Head.model_validate({"kind": "detect", "model": str(folder), **more})


@pytest.mark.parametrize("side", [64, 50])
def test_the_net_gives_the_maps_of_its_own_forward(folder, side):
    loaded = load_head(head(folder), "nuclei")
    assert (loaded.size, loaded.overlap, loaded.context, loaded.classes, loaded.task) == (64, 16, 8, ("tumour", "stroma"), "detection")
    pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        found = loaded.module(pixels)
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        for k in range(3):
            wanted = random_net()((pixels[k : k + 1] / 255 - mean) / std)
            for name, channels in (("np", 2), ("hv", 2), ("tp", 3)):
                assert found[name].shape == (3, channels, side, side)
                assert torch.allclose(found[name][k], wanted[name][0], atol=1e-5)


def test_a_run_finds_what_the_net_finds_in_one_patch(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    write_pyramid(tmp_path / "a.tif", pixels, compression="deflate", levels=1)
    given = config(
        tmp_path / "a.tif", tmp_path / "out", encoder="none", tiles={"size": 64, "level": 0, "tissue": "none"},
        heads={"nuclei": {"kind": "detect", "model": str(folder)}},
    )  # fmt: skip
    assert tilestream.run(given).exit_code == 0
    loaded = load_head(head(folder), "nuclei")
    with torch.inference_mode():
        out = loaded.module(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    wanted = find_objects(split_outputs(out, 1)[0], 2, 64)
    table = pq.read_table(tmp_path / "out" / "a.zarr" / "shapes" / "nuclei.parquet")
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert len(wanted) > 0
    assert sorted(shape.wkt for shape in shapes) == sorted(shape.wkt for shape in wanted.shapes)
    counted = anndata.read_zarr(tmp_path / "out" / "a.zarr" / "tables" / "tiles").obsm["nuclei"]
    assert counted[0].tolist() == np.bincount(wanted.classes, minlength=2).tolist()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"detector": "four_branch"}, ConfigError, "detector is 'four_branch'"),
        ({"classes": []}, ConfigError, "a list of names is needed"),
        ({"width": 8}, ConfigError, "111 shapes differ"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, change, kind, words):
    (folder / "config.json").write_text(json.dumps({**ABOUT, **change}))
    with pytest.raises(kind, match=words):
        load_head(head(folder), "nuclei")


def test_the_classical_detector_finds_dark_discs_and_not_pale_ones():
    image = np.full((200, 200, 3), (235, 200, 220), np.uint8)
    y, x = np.mgrid[:200, :200]
    for k, (cy, cx) in enumerate([(40, 40), (40, 57), (120, 60), (150, 150), (60, 150)]):
        image[(y - cy) ** 2 + (x - cx) ** 2 <= 64] = (60, 40, 110) if k < 4 else (225, 190, 215)
    detector = nuclei()
    part = split_outputs(detector(torch.from_numpy(image).permute(2, 0, 1)[None]), 1)[0]
    objects = find_objects(part, 1, 200, detector.find_objects)
    found = objects.centres[np.lexsort(objects.centres.T[::-1])]
    assert np.abs(found - [(40, 40), (40, 57), (120, 60), (150, 150)]).max() <= 2
    assert np.abs(shapely.area(objects.shapes) / 201 - 1).max() < 0.25
