"""The ready-made configs under pipelines/ are valid, and say what they do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tilestream.config.heads import NO_ENCODER
from tilestream.config.load import load_config
from tilestream.config.slide_list import list_slides
from tilestream.encoders.catalogue import known_encoders
from tilestream.encoders.contexts.context_file import context_path

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = ["classify", "cluster", "context", "demo", "detect", "geotiff", "patch_tokens", "segment", "slide", "wsi"]


def test_the_promised_pipelines_are_there():
    assert sorted(path.stem for path in PIPELINES.glob("*.yaml")) == sorted([*NAMES, "fit"])


@pytest.mark.slow
def test_the_pipeline_of_fit_learns_from_the_slides_that_it_names(tmp_path):
    slides = json.dumps([f"sample://he?width=3072&height=3072&seed={seed}" for seed in range(4)])
    for command in (
        ["run", PIPELINES / "classify.yaml", "--set", "output=embeddings/fit", "--set", f"slides={slides}"],
        ["fit", PIPELINES / "fit.yaml"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tilestream", *map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.rglob("tissue.json")
    assert metrics.with_suffix(".html").is_file()
    assert json.loads(metrics.read_text())["metrics"]["balanced_accuracy"]["value"] > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_is_valid_and_explained(name):
    path = PIPELINES / f"{name}.yaml"
    assert load_config(path).output.path == f"embeddings/{name}"
    assert path.read_text().startswith("# ")


def test_the_demo_needs_no_files_and_is_small():
    config = load_config(PIPELINES / "demo.yaml")
    assert [ref.id for ref in list_slides(config.slides)] == ["sample_he_12288x8192_seed0"]
    assert (12288 / 2 / config.tiles.stride) * (8192 / 2 / config.tiles.stride) < 2500
    assert config.context is not None
    assert config.pool.name == "mean"


def test_each_pipeline_shows_its_subject():
    assert "tokens" in load_config(PIPELINES / "patch_tokens.yaml").output.save
    assert load_config(PIPELINES / "patch_tokens.yaml").encoder.args == {"output": "tokens"}
    assert load_config(PIPELINES / "geotiff.yaml").tiles.level == 0
    assert load_config(PIPELINES / "geotiff.yaml").tiles.tissue.method == "none"
    assert load_config(PIPELINES / "cluster.yaml").compute.scheduler.kind == "class"
    assert load_config(PIPELINES / "context.yaml").context is not None


def test_no_pipeline_defaults_to_an_untrained_encoder():
    entries = {entry.name: entry for entry in known_encoders()}
    for name in NAMES:
        encoder = load_config(PIPELINES / f"{name}.yaml").encoder.name
        assert encoder == NO_ENCODER or entries[encoder].note != "untrained"


@pytest.mark.parametrize("name", ["demo", "context"])
def test_what_is_shown_first_has_no_random_weights(name):
    config = load_config(PIPELINES / f"{name}.yaml")
    assert config.context.weights == "tilestream-lite-context"
    assert Path(context_path(config.context.weights)).is_file()
    assert config.pool.name == "mean"
