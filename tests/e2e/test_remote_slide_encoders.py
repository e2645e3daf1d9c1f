"""Slide encoders that their authors' own code builds: it runs with consent only, and is given whole cells as coordinates."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tests.support.torchvision_ops import declare_missing_operators
from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.errors import CodeError, ConfigError, InputError
from tilestream.models.slides.specs import RemoteSpec

CODE = """
import os
import pathlib

import torch
from transformers import PretrainedConfig, PreTrainedModel

pathlib.Path(os.environ["TILESTREAM_TEST_RAN"]).write_text("x")


class MadeConfig(PretrainedConfig):
    model_type = "made_slide"


class MadeModel(PreTrainedModel):
    config_class = MadeConfig

    def __init__(self, config):
        super().__init__(config)
        self.factor = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def _mean(self, features, coords):
        assert coords.dtype == torch.int64 and coords.shape == (*features.shape[:2], 2)
        return torch.cat([features.mean(dim=1) * self.factor, coords.float().mean(dim=1)], dim=1)

    def encode_slide_from_patch_features(self, features, coords, patch_size_lv0):
        assert patch_size_lv0 == 64
        return self._mean(features, coords)

    def slide_representations(self, features):
        return {"image_embedding": self._mean(features, torch.zeros(*features.shape[:2], 2, dtype=torch.int64))}

    def forward(self, features, count, coords):
        assert count == features.shape[1]
        return type("Found", (), {"wsi_embedding": self._mean(features, coords)})()
"""


@pytest.fixture
def image(tmp_path):
    return write_pyramid(tmp_path / "a.tif", make_image(300, 400, 1), compression="deflate", levels=1, mpp=0.5)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    declare_missing_operators()
    monkeypatch.setenv("TILESTREAM_TEST_RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / f"made_{tmp_path.name}"
    folder.mkdir()
    (folder / "modeling_made.py").write_text(CODE)
    about = {"model_type": "made_slide", "architectures": ["MadeModel"]}
    about["auto_map"] = {"AutoConfig": "modeling_made.MadeConfig", "AutoModel": "modeling_made.MadeModel"}
    (folder / "config.json").write_text(json.dumps(about))
    save_file({"factor": torch.tensor([2.0])}, folder / "model.safetensors", {"format": "pt"})
    return folder


def made(monkeypatch, name, call, dim=14):
    preset = replace(SLIDE_PRESETS[name], spec=RemoteSpec(12, dim, call, 10**6), tile=64, tile_encoder="tests.support.encoders:corners")
    monkeypatch.setitem(SLIDE_PRESETS, name, preset)


def encode(image, output, repository, name, **pool):
    settings = given(image, output, pool={"name": name, "weights": str(repository), **pool})
    tilestream.run(settings)
    return tilestream.open(output / "a.zarr")


@pytest.mark.parametrize(("name", "call"), [("titan", "patch_features"), ("prism", "representations"), ("care", "embedding")])
def test_with_consent_its_code_makes_the_vector_from_our_cells(image, tmp_path, repository, monkeypatch, name, call):
    made(monkeypatch, name, call)
    slide = encode(image, tmp_path / "out", repository, name, trust_remote_code=True)
    places = np.zeros(2) if name == "prism" else [slide.read_column(axis).mean() * 64 for axis in ("col", "row")]
    assert np.allclose(slide.slide_vector, [*slide.embeddings[:].mean(axis=0) * 2, *places], rtol=1e-5)
    assert slide.recipe["pool"]["trust_remote_code"] is True
    assert len(slide.recipe["pool"]["weights_sha256"]) == 64


def test_without_consent_nothing_of_it_runs(image, tmp_path, repository, monkeypatch):
    made(monkeypatch, "titan", "patch_features")
    with pytest.raises(ConfigError, match=r"pool.trust_remote_code: false, but titan is built by code of its own repository"):
        encode(image, tmp_path / "out", repository, "titan")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match=r"titan needs the folder of its whole repository"):
        encode(image, tmp_path / "out", tmp_path / "nowhere", "titan", trust_remote_code=True)


def test_code_that_fails_or_gives_something_else_is_named(image, tmp_path, repository, monkeypatch):
    made(monkeypatch, "titan", "patch_features", dim=3)
    with pytest.raises(ConfigError, match=r"the code of titan gave \(14,\) numbers, not 3"):
        encode(image, tmp_path / "out", repository, "titan", trust_remote_code=True)
    (repository / "modeling_made.py").write_text("raise RuntimeError('no such luck')")
    with pytest.raises(CodeError, match=r"pool titan failed on building it .*no such luck"):
        encode(image, tmp_path / "other", repository, "titan", trust_remote_code=True)
