"""What a run, an idle run and their records say: of cut pictures, of secrets, of encoders known by name, of maps, of slides beyond a job's share."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config
from tilestream.config.compute import Compute, SchedulerSpec
from tilestream.config.load import load_config, recorded_config
from tilestream.encoders.factories import factory_file
from tilestream.errors import ConfigError, OutputError
from tilestream.runner.engines.clusters import open_cluster
from tilestream.runner.progress import LogReporter
from tilestream.runner.summary import SlideResult
from tilestream.sources.facts.describe import describe_image
from tilestream.viewer.report import write_report

TILES = {"size": 64, "level": 0, "tissue": "none"}
ENCODER = "tests.support.encoders:corners"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jp2"])
def test_a_cut_picture_is_named_by_inspect_and_by_the_run(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(make_image(150, 200, 1)).save(path)
    assert not any("cannot be read" in words for words in describe_image(str(path))["warnings"])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    assert any("its pixels cannot be read" in words for words in describe_image(str(path))["warnings"])
    summary = tilestream.run(config(path, tmp_path / "out", tiles=TILES, encoder=ENCODER))
    assert summary.exit_code == 4
    assert summary.slides[0].counts.get("decode_error") == 12
    assert "decoder" in next(iter(summary.slides[0].tile_errors.values()))


SCHEDULER = {
    "class": "tests.support.encoders.corners",
    "args": {"password": "hunter2", "cores": 4, "queue": "gpu", "env": {"TOKEN": "abc"}, "extra": ["--export=PW=xyz"], "port": 7},
}


def test_arguments_of_a_cluster_stand_in_no_record_unless_they_let_nobody_in(tmp_path):
    checked = load_config(config("a.tif", tmp_path / "out", tiles=TILES, encoder=ENCODER, compute={"scheduler": SCHEDULER}))
    told = json.dumps(recorded_config(checked))
    assert not any(secret in told for secret in ("hunter2", "abc", "xyz"))
    assert '"queue": "gpu"' in told
    assert '"cores": 4' in told
    assert checked.compute.scheduler.args["password"] == "hunter2"


def failing(password):
    """A cluster that says why it does not start."""
    raise ValueError(f"no login as {password}")


def test_a_cluster_that_does_not_start_says_so_without_its_secrets():
    scheduler = SchedulerSpec(cls=f"{__name__}.failing", args={"password": "hunter2"}, kind="class")
    with pytest.raises(ConfigError, match=r"failing does not start: no login as \*\*\*$") as caught:
        open_cluster(Compute(scheduler=scheduler))
    assert caught.value.__suppress_context__


def test_an_idle_run_says_whether_the_file_of_an_encoder_is_the_same(tmp_path, monkeypatch):
    code = tmp_path / "code" / "mine.py"
    code.parent.mkdir()
    code.write_text("from tests.support.encoders import corners\n")
    monkeypatch.syspath_prepend(str(code.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    image = write_pyramid(tmp_path / "a.tif", make_image(150, 150, 1), compression="deflate", levels=1, mpp=0.5)
    settings = config(image, tmp_path / "out", tiles=TILES, encoder="mine:corners")
    assert factory_file("mine:corners") == code
    assert tilestream.run(settings).exit_code == 0
    said = []
    monkeypatch.setattr(LogReporter, "message", lambda self, text, **_: said.append(text))
    tilestream.run(settings, reporter=LogReporter(io.StringIO()))
    assert (
        said[-1] == "nothing to do; mine:corners is known by its name; its file is the same, what that imports or loads was not looked at"
    )
    code.write_text("# a remark\nfrom tests.support.encoders import corners\n")
    tilestream.run(settings, reporter=LogReporter(io.StringIO()))
    assert "its file is the same" in said[-1]
    code.write_text("from tests.support.encoders import scaled as corners\n")
    with pytest.raises(OutputError, match=r"mine\.py of mine:corners holds other code than when rows of .* were made"):
        tilestream.run(settings, reporter=LogReporter(io.StringIO()))


@pytest.mark.parametrize("name", ["timm:vit", "hf:a/b", "vit_small_patch16_224", "nowhere.at_all:f", ":f", "a..b:f", "tests.nothing:f"])
def test_names_without_a_module_have_no_file(name):
    assert factory_file(name) is None


def test_slides_beyond_the_share_of_a_job_are_counted():
    told = io.StringIO()
    reporter = LogReporter(told)
    reporter.started(1, SimpleNamespace(name="e", dim=1, precision="fp32", device="cpu", batch=1), 1)
    for name in ("a", "b", "c"):
        reporter.slide_done(SlideResult(name, "", "done", 1))
    assert (reporter.slides_done, reporter.slides) == (3, 3)


def test_a_raster_of_which_nothing_is_kept_has_no_tissue_in_what_is_said(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    profile = {
        "driver": "GTiff",
        "height": 128,
        "width": 128,
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32633",
        "transform": place,
        "nodata": 0,
    }
    with rasterio.open(tmp_path / "a.tif", "w", tiled=True, blockxsize=64, blockysize=64, **profile) as out:
        out.write(np.zeros((3, 128, 128), np.uint8))
    summary = tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", tiles={**TILES, "tissue": "otsu"}, encoder=ENCODER))
    assert summary.slides[0].note == "no tile holds anything"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["slides"][0]["note"] == "no tile holds anything"
    write_report(str(tmp_path / "out"), str(tmp_path / "report.html"))
    assert "no tissue found" not in (tmp_path / "report.html").read_text()


def test_tissue_that_fills_too_little_of_a_tile_is_not_called_none(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    write_pyramid(tmp_path / "a.tif", picture, tile=64, levels=1, compression="deflate")
    summary = tilestream.run(
        config(tmp_path / "a.tif", tmp_path / "out", tiles={"size": 224, "level": 0, "tissue": "otsu"}, encoder=ENCODER)
    )
    assert summary.slides[0].note == "no tile holds enough tissue"
    assert any("tiles.tissue.min_fraction (0.1)" in warning for warning in summary.slides[0].warnings)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["slides"][0]["note"] == "no tile holds enough tissue"
