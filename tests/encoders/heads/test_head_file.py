"""Our file of a head: what is written is read, the same bytes each time, and nothing else is taken for one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tilestream.encoders.heads.head_file import MODELS, Fitted, HeadAbout, build_model, read_about, read_head, write_head
from tilestream.errors import ConfigError, InputError

FITTED = Fitted("uni", "ab" * 32, "fp32", 224, 0.5)
ABOUT = HeadAbout(
    "classify",
    "linear",
    "tiles",
    6,
    2,
    classes=("benign", "tumour"),
    fitted=FITTED,
    metrics={"auroc": [0.9, 0.8, 0.95], "slides": 12},
    notes="made",
)
ARGUMENTS = {"knn": {"examples": 5}, "mlp": {"hidden": 3}, "abmil": {"hidden": 4, "gate": 2}, "transformer": {"width": 8, "latents": 2}}


@pytest.mark.parametrize(("kind", "model"), [(kind, model) for kind, models in MODELS.items() for model in models])
def test_every_model_comes_back_as_it_was_written(tmp_path, kind, model):
    about = replace(ABOUT, kind=kind, model=model, arguments=ARGUMENTS.get(model, {}))
    module = build_model(about)
    for name in ("a", "b"):
        write_head(tmp_path / name / "h.safetensors", module, about)
    assert (tmp_path / "a/h.safetensors").read_bytes() == (tmp_path / "b/h.safetensors").read_bytes()
    found, told = read_head(tmp_path / "a" / "h.safetensors")
    assert told == about
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in module.state_dict().items())
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "h.safetensors"]


def test_what_a_head_says_of_itself_is_checked_at_birth():
    with pytest.raises(ValueError, match="3 names of classes for 2 outputs"):
        replace(ABOUT, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="no model 'forest'"):
        replace(ABOUT, model="forest")
    with pytest.raises(ValueError, match="task must be one of"):
        replace(ABOUT, task="ranking")
    assert replace(ABOUT, outputs=1).classes == ("benign", "tumour")
    with pytest.raises(ConfigError, match="cannot be built with"):
        build_model(replace(ABOUT, arguments={"depth": 3}))


def test_other_files_are_told_apart_and_damaged_ones_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert read_about(tmp_path / "other.safetensors") is None
    with pytest.raises(InputError, match="is no head of tilestream"):
        read_head(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_head(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_about(tmp_path / "missing.safetensors")
    told = {
        "format": 1,
        "kind": "classify",
        "model": "linear",
        "input": "tiles",
        "dim": 6,
        "outputs": 2,
        "classes": ["a", "b"],
        "fitted": None,
    }
    save_file(
        {"fc.weight": torch.zeros(2, 5), "fc.bias": torch.zeros(2)}, tmp_path / "h.safetensors", {"tilestream_head": json.dumps(told)}
    )
    with pytest.raises(InputError, match=r"its tensors are not those of a linear head of 6 channels: fc\.weight"):
        read_head(tmp_path / "h.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "h.safetensors", {"tilestream_head": json.dumps({**told, "format": 9})})
    with pytest.raises(InputError, match="of another version"):
        read_head(tmp_path / "h.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "h.safetensors", {"tilestream_head": "{"})
    with pytest.raises(InputError, match="what it says of its head cannot be read"):
        read_head(tmp_path / "h.safetensors")
