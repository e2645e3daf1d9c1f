"""From slides to a head to its answers: `run`, `fit`, `run` with the head, on sample slides of two recipes."""

import csv
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tilestream
from tests.support.runs import config, opened
from tests.support.stores import make_store
from tilestream.cli import app
from tilestream.encoders.heads.head_file import read_head
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.fit import fit
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

SLIDES = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Embeddings of slides of which each second has one channel raised, and a table of their labels."""
    folder = tmp_path_factory.mktemp("cohort")
    chance = np.random.default_rng(0)
    for i in range(SLIDES):
        make_store(folder / "out" / f"s{i}.zarr", 6, 6, dim=6, fingerprint=f"image{i}", finish=False)
        store = SlideStore(Folder(str(folder / "out" / f"s{i}.zarr")))
        values = chance.normal(size=(36, 6)).astype(np.float32)
        values[:, 1] += 2.0 * (i % 2)
        store.write_shard(0, {"tables/tiles/X": values, "tables/tiles/obs/status/codes": np.zeros(36, np.int8)}, {"counts": {}})
        store.seal()
        store.complete({"tiles": 36, "counts": {}})
    (folder / "labels.csv").write_text("slide,patient,kind\n" + "\n".join(f"s{i},p{i},{'ab'[i % 2]}" for i in range(SLIDES)) + "\n")
    return folder


def fit_config(folder, to, **sections):
    given = {
        "embeddings": str(folder / "out"),
        "target": {"slides": str(folder / "labels.csv"), "column": "kind"},
        "head": {"name": "kind", "kind": "slide", "model": "mean"},
        "split": {"folds": 3},
        "save": str(to / "kind.safetensors"),
    }
    return {**given, **sections}


@pytest.mark.parametrize("kind", ["slide", "classify"])
def test_a_head_is_written_with_what_it_is_worth(cohort, tmp_path, kind):
    model = {"slide": "mean", "classify": "linear"}[kind]
    found = fit(fit_config(cohort, tmp_path, head={"name": "kind", "kind": kind, "model": model}))
    assert found.evaluation.metrics["auroc"].value > 0.85
    assert found.evaluation.baselines["majority"]["auroc"].value == pytest.approx(0.5, abs=0.2)
    told = json.loads((tmp_path / "kind.json").read_text())
    assert told["patients"] == SLIDES
    rows = list(csv.DictReader((tmp_path / "kind-predictions.csv").read_text().splitlines()))
    assert [row["slide"] for row in rows] == [slide.id for slide in tilestream.open(cohort / "out")]
    assert np.mean([row["label"] == row["predicted"] for row in rows]) > 0.7
    module, about = read_head(tmp_path / "kind.safetensors")
    assert about.classes == ("a", "b")
    assert about.kind == kind
    assert about.metrics["auroc"]["value"] == pytest.approx(found.evaluation.metrics["auroc"].value)
    page = (tmp_path / "kind.html").read_text()
    assert "ROC" in page
    assert "patients are few" in page
    assert module is not None


def test_the_same_config_gives_the_same_bytes(cohort, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fit(fit_config(cohort, tmp_path / name, head={"name": "kind", "kind": "classify", "model": "mlp", "args": {"epochs": 3}}))
    files = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    for one, two in zip(*files, strict=True):
        if one.suffix in (".safetensors", ".csv"):
            assert one.read_bytes() == two.read_bytes()


def test_files_that_no_fit_wrote_are_left_alone(cohort, tmp_path):
    (tmp_path / "kind.html").write_text("mine")
    with pytest.raises(ConfigError, match="no fit has written it"):
        fit(fit_config(cohort, tmp_path))
    (tmp_path / "kind.html").unlink()
    (tmp_path / "kind.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        fit(fit_config(cohort, tmp_path))
    assert (tmp_path / "kind.safetensors").read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == {"kind.safetensors"}


def test_the_command_tells_what_is_wrong_and_what_came_out(cohort, tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(fit_config(cohort, tmp_path, head={"name": "Kind", "kind": "slide", "model": "linear"})))
    refused = CliRunner().invoke(app, ["fit", str(path), "--set", "split.fold=2"])
    assert isinstance(refused.exception, ConfigError)
    words = str(refused.exception)
    assert "head.name: 'Kind' is not of the form" in words
    assert "head.model: linear, but a head of kind slide is one of mean, max, abmil, transformer" in words
    assert "split.fold: unknown key; did you mean split.folds?" in words
    path.write_text(json.dumps(fit_config(cohort, tmp_path)))
    done = CliRunner().invoke(app, ["fit", str(path)])
    assert done.exit_code == 0, done.output
    assert "auroc" in done.output
    assert "note: 12 patients are few" in done.output


@pytest.mark.slow
def test_a_head_answers_in_a_later_run_and_tiles_of_another_size_are_refused(tmp_path):
    slides = [f"sample://he?width=1792&height=1344&seed={seed}" for seed in range(4)]
    given = config(slides[0], tmp_path / "out", tiles={"size": 224, "level": 0, "tissue": "none"}, pool="mean")
    given["slides"] = slides
    assert tilestream.run(given).exit_code == 0
    ids = tilestream.open(tmp_path / "out").ids
    (tmp_path / "labels.csv").write_text("slide,kind\n" + "\n".join(f"{name},{'ab'[i % 2]}" for i, name in enumerate(ids)) + "\n")
    for kind, model in (("classify", "linear"), ("slide", "abmil")):
        head = {"name": "kind", "kind": kind, "model": model, **({"args": {"epochs": 1}} if model == "abmil" else {})}
        target = {"slides": str(tmp_path / "labels.csv"), "column": "kind"}
        fit(
            {
                "embeddings": str(tmp_path / "out"),
                "target": target,
                "head": head,
                "split": {"folds": 2},
                "save": str(tmp_path / f"{kind}.safetensors"),
            }
        )
    given["heads"] = {
        "tile_kind": {"kind": "classify", "model": str(tmp_path / "classify.safetensors")},
        "slide_kind": {"kind": "slide", "model": str(tmp_path / "slide.safetensors")},
    }
    assert tilestream.run(given).exit_code == 0
    slide = opened(tmp_path / "out", ids[0])
    module, _ = read_head(tmp_path / "classify.safetensors")
    expected = torch.softmax(module(torch.as_tensor(slide.embeddings[:])), 1).numpy()
    np.testing.assert_allclose(slide.array("tables/tiles/obsm/tile_kind")[:], expected, atol=1e-5)
    assert slide.array("tables/slide/obsm/slide_kind")[:].sum() == pytest.approx(1, abs=1e-5)
    given["tiles"]["size"] = 112
    given["output"]["path"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"(?s)224.*112|112.*224"):
        tilestream.run(given)


@pytest.mark.slow
def test_a_head_of_each_of_several_columns(cohort, tmp_path):
    lines = [f"s{i},p{i},{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(SLIDES)]
    (tmp_path / "labels.csv").write_text("slide,patient,kind,Other grade\n" + "\n".join(lines) + "\n")
    target = {"slides": str(tmp_path / "labels.csv"), "columns": ["kind", "Other grade"]}
    with pytest.raises(ConfigError, match=r"with target\.columns it must hold \{column\}"):
        fit(fit_config(cohort, tmp_path, target=target))
    found = fit(fit_config(cohort, tmp_path, target=target, save=str(tmp_path / "{column}.safetensors")))
    assert list(found.each) == ["kind", "Other grade"]
    assert read_head(tmp_path / "kind.safetensors")[1].classes == ("a", "b")
    assert read_head(tmp_path / "other_grade.safetensors")[1].classes == ("x", "y", "z")
    assert found.each["kind"].evaluation.metrics["auroc"].value > 0.85
    assert (tmp_path / "other_grade.html").exists()


def test_what_a_report_of_attention_shows(cohort, tmp_path):
    found = fit(fit_config(cohort, tmp_path, head={"name": "kind", "kind": "slide", "model": "abmil", "args": {"epochs": 2}}))
    page = found.report.read_text()
    assert "Orange is where the head looked" in page
    assert page.count("<img") == SLIDES * 4  # the slide under its attention, and the tiles that it looked at most
    assert found.peak_bytes < found.memory.total
    told = json.loads(found.metrics.read_text())["memory"]
    assert told["projected"] == found.memory.total


def test_three_slides_are_said_to_be_few_and_rows_without_vectors_are_named(tmp_path):
    for i in range(3):
        make_store(tmp_path / "out" / f"s{i}.zarr", 3, 3, fingerprint=f"image{i}", failed=range(9) if i == 2 else (1,))
    config = fit_config(tmp_path, tmp_path, split={"folds": 3})
    (tmp_path / "labels.csv").write_text("slide,kind\ns0,1\ns1,2\ns2,4\n")
    config["target"]["regression"] = True
    for model in ("mean", "abmil"):
        config["head"] = {"name": "kind", "kind": "slide", "model": model, "args": {"epochs": 1} if model == "abmil" else {}}
        with pytest.raises(InputError, match=r"s2 has no tile with an embedding\. Leave it out of the table"):
            fit(config)
    (tmp_path / "labels.csv").write_text("slide,kind\ns0,1\ns1,2\ns2,\n")
    config["split"]["folds"] = 2
    found = fit(config)
    assert any("2 patients are few: intervals are rough" in note for note in found.evaluation.notes)
    assert any(line.startswith("not used: 1 slides, e.g. s2: kind is empty") for line in found.lines)


@pytest.mark.slow
def test_tiles_learn_what_another_head_said_of_them(tmp_path):
    slides = [f"sample://he?width=1792&height=1344&seed={seed}" for seed in range(3)]
    given = config(slides[0], tmp_path / "out", tiles={"size": 224, "level": 0, "tissue": "none"})
    given["slides"] = slides
    given["encoder"] = {"name": "tilestream-lite", "precision": "fp32"}
    given["heads"] = {"tissue_kind": {"kind": "classify", "model": "tilestream-sample-tissue"}}
    given["tiles"] = {"size": 224, "mpp": 0.5, "tissue": "none"}
    assert tilestream.run(given).exit_code == 0
    told = {
        "embeddings": str(tmp_path / "out"), "target": {"obs": "tissue_kind"}, "head": {"name": "again", "kind": "classify", "model": "prototypes"},
        "split": {"folds": 2}, "save": str(tmp_path / "again.safetensors"),
    }  # fmt: skip
    answers = [opened(tmp_path / "out", name).obs["tissue_kind"].astype(str) for name in tilestream.open(tmp_path / "out").ids]
    shared = [name for name in set(answers[0]) if sum(name in set(answer) for answer in answers) > 1]
    told["target"]["classes"] = sorted(shared)
    found = fit(told)
    assert found.evaluation.samples == sum(answer.isin(shared).sum() for answer in answers)
    assert found.evaluation.metrics["accuracy"].value > found.evaluation.baselines["majority"]["accuracy"].value
    with pytest.raises(ConfigError, match="no head of that name; it has tissue_kind"):
        fit({**told, "target": {"obs": "tisue"}})
