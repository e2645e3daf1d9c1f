"""A mosaic through the whole program: its rows are those of the merged file, bit for bit, seams and all."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.rasters import NORTH_UP, OVERLAPPING, PICTURE, QUARTERS, SOUTH_UP, cut, merged, write_raster
from tests.support.runs import embed, opened
from tests.support.viewing import viewed
from tilestream.cli import app
from tilestream.errors import OutputError
from tilestream.interop.recorded_image import open_recorded
from tilestream.sources.base import SourceOptions

TILES = {"tiles": {"size": 64, "level": 0}, "encoder": {"name": "vit_tiny_patch16_224", "args": {"img_size": 64}}}
HOLED = {**QUARTERS, "d": (280, 400, 300, 420)}


def rows(output, slide):
    store = opened(output, slide)
    return {(row, col): vector for row, col, vector in zip(store.obs.row, store.obs.col, store.embeddings[:], strict=True)}


@pytest.mark.parametrize(("boxes", "transform"), [(QUARTERS, NORTH_UP), (OVERLAPPING, SOUTH_UP), (HOLED, NORTH_UP)])
def test_embeddings_across_seams_are_those_of_the_merged_file(tmp_path, boxes, transform):
    paths = cut(PICTURE, boxes, tmp_path / "parts", transform, nodata=0)
    judge = tmp_path / "whole.tif"
    if transform is SOUTH_UP:  # which rasterio.merge refuses
        write_raster(judge, PICTURE, transform, nodata=0)
    else:
        merged(paths, judge)
    embed(f"mosaic://{tmp_path / 'parts'}", tmp_path / "out", **TILES, compute={"shard_tiles": 16})
    embed(judge, tmp_path / "out", **TILES)
    found, wanted = rows(tmp_path / "out", "parts"), rows(tmp_path / "out", "whole")
    for place, vector in found.items():
        np.testing.assert_array_equal(vector, wanted[place])
    there = {(row, col) for row, col in wanted if any(row * 64 < y1 and row * 64 + 64 > y0 and col * 64 < x1 and col * 64 + 64 > x0 for y0, x0, y1, x1 in boxes.values())}  # fmt: skip
    assert set(found) == there
    assert (boxes is HOLED) == (len(there) < len(wanted))
    assert opened(tmp_path / "out", "parts").source["geo"] == opened(tmp_path / "out", "whole").source["geo"]


def test_inspect_plan_run_and_view_take_it_and_a_changed_file_is_found(tmp_path):
    cut(PICTURE, QUARTERS, tmp_path / "parts")
    address = f"mosaic://{tmp_path / 'parts'}"
    config = {
        "slides": address,
        "output": "out",
        "tiles": {"size": 100, "level": 0, "tissue": "none"},
        "encoder": "tests.support.encoders:mean_rgb",
        "compute": {"scheduler": "inline"},
    }
    config["output"] = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run = CliRunner()
    seen = run.invoke(app, ["inspect", address, "--json"])
    assert json.loads(seen.stdout)["backend"] == "mosaic"
    assert run.invoke(app, ["plan", str(tmp_path / "config.yaml")]).exit_code == 0
    assert run.invoke(app, ["run", str(tmp_path / "config.yaml")]).exit_code == 0
    with open_recorded(viewed(tmp_path / "out" / "parts.zarr"), SourceOptions()) as image:
        np.testing.assert_array_equal(image.read((150, 200, 50, 60)), PICTURE[150:200, 200:260])
    again = run.invoke(app, ["run", str(tmp_path / "config.yaml")])
    assert again.exit_code == 0
    cut(255 - PICTURE, {"d": QUARTERS["d"]}, tmp_path / "parts")
    with pytest.raises(OutputError, match=r"the bytes of mosaic://.*source\.fingerprint"):
        run.invoke(app, ["run", str(tmp_path / "config.yaml")], catch_exceptions=False)
