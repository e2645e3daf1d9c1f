"""What `fit` says of cohorts whose signal is known: no more than there is, no less, and nothing where there is none."""

import csv

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import tilestream
from tests.support.cohorts import PATIENTS, SLIDES, write_cohort, write_labels, write_rows
from tests.support.images import write_pyramid
from tests.support.runs import config
from tilestream.errors import InputError
from tilestream.fitting.fit import fit
from tilestream.sources.made.histology import KINDS, make_texture

pytestmark = pytest.mark.slow

SEEDS = 20
TILE_MODELS = ("linear", "knn", "prototypes")


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """All tiles of one kind are shifted a little: tiles overlap, slides less so."""
    folder = tmp_path_factory.mktemp("weak")
    return folder, *write_cohort(folder, shift=1.2)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """A fifth of the tiles of one kind are shifted much: the mean tells little, the right tiles tell all."""
    folder = tmp_path_factory.mktemp("rare")
    return folder, *write_cohort(folder, shift=4.0, share=0.2)


def fitted(folder, to, model, *, labels=None, seed=0, **args):
    """`fit` with five folds."""
    return fit(
        {
            "embeddings": str(folder / "out"),
            "target": {"slides": str(labels or folder / "labels.csv"), "column": "kind"},
            "head": {"name": "kind", "kind": "classify" if model in TILE_MODELS else "slide", "model": model, "args": args},
            "split": {"folds": 5, "seed": seed},
            "save": str(to / f"{model}.safetensors"),
        }
    )


@pytest.mark.parametrize(("model", "args"), [("linear", {}), ("knn", {"k": 200, "temperature": 1.0}), ("prototypes", {})])
def test_heads_of_tiles_reach_what_the_signal_allows(weak, tmp_path, model, args):
    folder, x, label, direction = weak
    auroc = fitted(folder, tmp_path, model, **args).evaluation.metrics["auroc"]
    allowed = roc_auc_score(np.repeat(label, x.shape[1]), (x @ direction).ravel())
    assert allowed > 0.65
    assert auroc.low <= allowed
    assert allowed - 0.05 < auroc.value < allowed + 0.03


def test_a_head_of_slides_reaches_what_the_signal_allows(weak, tmp_path):
    folder, x, label, direction = weak
    found = fitted(folder, tmp_path, "mean")
    allowed = roc_auc_score(label, (x @ direction).mean(axis=1))
    assert found.evaluation.patients == PATIENTS
    assert found.evaluation.samples == SLIDES
    assert found.evaluation.metrics["auroc"].value > allowed - 0.1
    assert found.evaluation.metrics["auroc"].high >= allowed


def test_attention_finds_the_few_tiles_that_tell(rare, tmp_path):
    folder, x, label, direction = rare
    # Twice the likeliest share of shifted tiles: the score of one who knows where the signal is.
    allowed = roc_auc_score(label, np.logaddexp(np.log(0.8), np.log(0.2) + 4 * (x @ direction) - 8).mean(axis=1))
    assert allowed > 0.97
    assert fitted(folder, tmp_path, "abmil").evaluation.metrics["auroc"].value > allowed - 0.08


@pytest.mark.parametrize(("model", "args"), [("linear", {}), ("prototypes", {}), ("abmil", {"epochs": 3})])
def test_shuffled_labels_are_at_chance(weak, tmp_path, model, args, monkeypatch):
    monkeypatch.setattr("tilestream.fitting.evaluate.ROUNDS", 300)
    folder, _, label, _ = weak
    outside = []
    for seed in range(SEEDS):
        shuffled = np.repeat(np.random.default_rng(seed).permutation(label[::2]), 2)
        write_labels(tmp_path / "labels.csv", shuffled)
        auroc = fitted(folder, tmp_path, model, labels=tmp_path / "labels.csv", seed=seed, **args).evaluation.metrics["auroc"]
        if not auroc.low <= 0.5 <= auroc.high:
            outside.append(str(auroc))
    assert len(outside) <= 2, outside


@pytest.mark.parametrize("leak", ["patient in two folds", "image under two patients"])
def test_a_planted_leak_is_refused(weak, tmp_path, leak):
    folder, _, label, _ = weak
    target = {"slides": str(tmp_path / "labels.csv"), "column": "kind"}
    told = {
        "embeddings": [str(folder / "out")], "target": target, "head": {"name": "kind", "kind": "slide", "model": "mean"},
        "save": str(tmp_path / "kind.safetensors"),
    }  # fmt: skip
    rows = [[f"s{i:02}", f"p{i // 2:02}", "ab"[k], i // 12] for i, k in enumerate(label)]
    if leak == "patient in two folds":
        rows[11][3] = 4
        told["split"] = {"column": "fold"}
        words = r"s10 and s11 are of one patient, or show one image, but lie in the folds '0' and '4'"
    else:
        write_rows(tmp_path / "more" / "again.zarr", np.zeros((36, 8)), fingerprint="image7")
        told["embeddings"].append(str(tmp_path / "more"))
        rows.append(["again", "p99", "b", 0])
        words = r"s07 and again show the same image, but belong to the patients p03 and p99"
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide", "patient", "kind", "fold"], *rows])
    with pytest.raises(InputError, match=words):
        fit(told)
    assert not (tmp_path / "kind.safetensors").exists()


def test_slides_of_two_recipes_through_the_whole_line(tmp_path):
    """20 pictures of 10 patients, stroma with a little fat or with a few lymphocytes: from pixels to a head, which stains of its own do not mislead."""
    (tmp_path / "slides").mkdir()
    chance = np.random.default_rng(0)
    kinds = {
        name: [make_texture(KINDS.index(name), seed, 0.5, 1024)[:896, :896] for seed in range(2)] for name in ("stroma", "fat", "lymphoid")
    }
    for i in range(20):
        picture = kinds["stroma"][i // 2 % 2].copy()
        for y, x in chance.permutation([(y, x) for y in range(0, 896, 224) for x in range(0, 896, 224)])[:3]:
            picture[y : y + 224, x : x + 224] = kinds["fat" if i // 2 % 2 else "lymphoid"][i % 2][y : y + 224, x : x + 224]
        stain = np.random.default_rng(i // 2).uniform(0.85, 1.0, 3)
        write_pyramid(tmp_path / "slides" / f"s{i:02}.tif", (picture * stain).astype(np.uint8))
    given = config(
        str(tmp_path / "slides" / "*.tif"),
        tmp_path / "out",
        encoder={"name": "tilestream-lite", "precision": "fp32", "allow_mismatch": True},
    )
    assert tilestream.run(given).exit_code == 0
    write_labels(tmp_path / "labels.csv", np.arange(20) // 2 % 2)
    for model in ("mean", "abmil"):
        found = fitted(tmp_path, tmp_path, model, labels=tmp_path / "labels.csv")
        assert found.evaluation.patients == 10
        assert found.evaluation.metrics["auroc"].value > 0.9
