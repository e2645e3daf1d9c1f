"""The heads in the package: small, explained, fitted on what they say, and right on a sample slide that they have not seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

import tilestream
from benchmarks import fit_sample_segmenter
from benchmarks.fit_sample_heads import BLOOD, SEEN, kinds_of
from tilestream.config.load import load_config
from tilestream.encoders.heads.address import BOX, box_names
from tilestream.encoders.heads.head_file import read_about
from tilestream.sources.made.slide import sample_labels

SLIDE = "sample://he?width=4096&height=4096&seed=0"


@pytest.mark.parametrize("name", box_names())
def test_a_head_in_the_package_is_small_and_says_what_it_is(name):
    assert (BOX / f"{name}.safetensors").stat().st_size < 1_000_000
    card = (BOX / f"{name}.md").read_text()
    assert "real tissue" in card
    about = read_about(BOX / f"{name}.safetensors")
    assert about.input == "pixels" or about.fitted.encoder == "tilestream-lite"
    assert "means nothing on real tissue" in about.notes
    for value in about.metrics.values():
        assert isinstance(value, str | int) or f"{value:.1%}".replace("%", " %") in card


@pytest.mark.slow
def test_the_pipelines_answer_rightly_for_a_slide_that_was_not_fitted_on(tmp_path):
    for name in ("classify", "slide"):
        config = load_config(f"pipelines/{name}.yaml", [f"slides={SLIDE}", f"output={tmp_path / name}", "compute.scheduler=inline"])
        assert tilestream.run(config).exit_code == 0
    tiles, bag = (tilestream.open(next((tmp_path / name).glob("*.zarr"))) for name in ("classify", "slide"))
    parts = kinds_of(tiles, *sample_labels(SLIDE))
    pure = parts.max(axis=1) >= 0.9
    right = tiles.read_head("tissue_kind").argmax(axis=1) == parts.argmax(axis=1)
    assert right[pure].mean() > 0.95
    assert bag.read_head("blood")[0, 1] > 0.5
    assert np.nansum(bag.read_head_attention("blood")[parts[:, BLOOD] >= SEEN]) > 0.5


@pytest.mark.slow
def test_the_pipeline_that_segments_labels_a_slide_that_was_not_fitted_on(tmp_path):
    config = load_config("pipelines/segment.yaml", [f"slides={SLIDE}", f"output={tmp_path / 'out'}", "compute.scheduler=inline"])
    assert tilestream.run(config).exit_code == 0
    found = zarr.open_array(next((tmp_path / "out").glob("*.zarr")) / "labels" / "tissue_kind" / "0", mode="r")[:]
    labels, cell = sample_labels(SLIDE)
    known = np.kron(labels, np.ones((cell // 16, cell // 16), np.uint8))[: found.shape[0], : found.shape[1]]
    computed = found > 0
    assert computed.any()
    assert (found[computed] - 1 == known[computed]).mean() > 0.85


@pytest.mark.slow
def test_the_segmenter_in_the_package_comes_out_the_same_each_time(tmp_path, monkeypatch):
    """A few steps on small slides, by the command that fitted it."""
    monkeypatch.setattr(fit_sample_segmenter, "address_of", lambda seed: f"sample://he?width=2048&height=1536&seed={seed}")
    threads, files = torch.get_num_threads(), []
    for name in ("a", "b"):
        fit_sample_segmenter.main(["--out", str(tmp_path / name), "--steps", "4"])
        files.append((tmp_path / name / "tilestream-sample-segment.safetensors").read_bytes())
    torch.set_num_threads(threads)
    assert files[0] == files[1]
    about = read_about(tmp_path / "a" / "tilestream-sample-segment.safetensors")
    assert replace(about, metrics={}, notes="") == replace(read_about(BOX / "tilestream-sample-segment.safetensors"), metrics={}, notes="")
