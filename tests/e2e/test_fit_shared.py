"""Heads of several columns that share their layers: the trunk is one, answers are as good as those of heads that learned alone."""

import csv
import json

import numpy as np
import pytest
import torch

from tests.support.cohorts import write_rows
from tilestream.encoders.heads.head_file import read_head
from tilestream.errors import ConfigError
from tilestream.fitting.fit import fit
from tilestream.models.heads.bags import BagRows

SLIDES, DIM = 32, 6


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Slides of patients of two each, with two signals in channels of their own; a quarter lacks the one label, some lack the other."""
    folder = tmp_path_factory.mktemp("cohort")
    chance = np.random.default_rng(0)
    rows = ["slide,patient,kind,stage,age"]
    for i in range(SLIDES):
        kind, stage = i // 2 % 2, i // 4 % 3
        x = chance.normal(size=(36, DIM))
        x[:, 1] += 2.0 * kind
        x[:, 4] += 2.0 * stage
        write_rows(folder / "out" / f"s{i:02}.zarr", x, fingerprint=f"image{i}")
        told = "" if i % 4 == 1 else "ab"[kind], "" if i % 8 == 2 else "xyz"[stage]
        rows.append(f"s{i:02},p{i // 2:02},{told[0]},{told[1]},{'' if i % 4 == 1 else 40 + 10 * stage}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def config(cohort, to, *, columns=("kind", "stage"), model="abmil", **target):
    return {
        "embeddings": str(cohort / "out"),
        "target": {"slides": str(cohort / "labels.csv"), "columns": list(columns), **target},
        "head": {"name": "it", "kind": "slide", "model": model, "args": {} if model == "mean" else {"epochs": 12}},
        "split": {"folds": 2},
        "save": str(to / "{column}.safetensors"),
    }


def predictions(to, column):
    with (to / f"{column}-predictions.csv").open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("model", ["abmil", "transformer"])
def test_shared_layers_are_one_and_each_file_is_a_whole_head(cohort, tmp_path, model):
    given = config(cohort, tmp_path, model=model, shared=True)
    given["head"]["args"]["epochs"] = 1
    fit(given)
    (kind, about), (stage, _) = (read_head(tmp_path / f"{column}.safetensors") for column in ("kind", "stage"))
    ours, theirs = kind.state_dict(), stage.state_dict()
    assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == {"fc.weight", "fc.bias"}
    assert about.classes == ("a", "b")
    rows = BagRows(torch.randn(5, DIM), torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    assert [len(head(rows)[0]) for head in (kind, stage)] == [2, 3]


@pytest.mark.slow
def test_answers_are_as_good_as_those_of_heads_that_learned_alone(cohort, tmp_path):
    (tmp_path / "alone").mkdir()
    together, alone = fit(config(cohort, tmp_path, shared=True)), fit(config(cohort, tmp_path / "alone"))
    for column in ("kind", "stage"):
        scores = [found.each[column].evaluation.metrics["auroc"].value for found in (together, alone)]
        assert scores[0] > scores[1] - 0.1, column
        assert scores[0] > 0.85


def test_no_patient_is_tested_by_layers_that_saw_it_for_another_column(cohort, tmp_path):
    given = config(cohort, tmp_path, shared=True)
    given["head"]["args"]["epochs"] = 1
    found = fit(given)
    folds = {}
    for column in ("kind", "stage"):
        for row in predictions(tmp_path, column).values():
            folds.setdefault(row["patient"], set()).add(row["fold"])
    assert all(len(fold) == 1 for fold in folds.values())
    assert len(folds) == SLIDES // 2
    assert set(predictions(tmp_path, "kind")) == {f"s{i:02}" for i in range(SLIDES) if i % 4 != 1}
    assert set(predictions(tmp_path, "stage")) == {f"s{i:02}" for i in range(SLIDES) if i % 8 != 2}
    told = json.loads((tmp_path / "kind.json").read_text())
    assert any("s01: kind is empty" in words for words in told["left_out"])
    assert "slides 24," in found.each["kind"].lines[0]


def test_numbers_share_layers_too_each_in_its_own_unit(cohort, tmp_path):
    lines = (cohort / "labels.csv").read_text().splitlines()
    more = [line + (",dose" if k == 0 else f",{1000 * ((k - 1) // 2 % 2)}") for k, line in enumerate(lines)]
    (tmp_path / "numbers.csv").write_text("\n".join(more))
    given = config(cohort, tmp_path, columns=("age", "dose"), shared=True, regression=True)
    given["target"]["slides"] = str(tmp_path / "numbers.csv")
    given["head"]["args"]["epochs"] = 25
    found = fit(given)
    assert found.each["age"].evaluation.metrics["r2"].value > 0.3
    assert found.each["dose"].evaluation.metrics["r2"].value > 0.3


def test_what_has_no_layers_to_share_is_refused(cohort, tmp_path):
    with pytest.raises(ConfigError, match=r"model is mean, and target\.shared is true, but only the layers of abmil and transformer"):
        fit(config(cohort, tmp_path, model="mean", shared=True))
    (tmp_path / "empty.csv").write_text("slide,kind,stage\n" + "\n".join(f"s{i:02},{'ab'[i % 2]}," for i in range(SLIDES)))
    given = config(cohort, tmp_path, shared=True)
    given["target"]["slides"] = str(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match=r"no slide of .*empty\.csv has a value for 'stage'"):
        fit(given)
