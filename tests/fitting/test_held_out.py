"""What is held out where all labels are of one patient, and how wide intervals are."""

import json

import numpy as np
import pytest
import scipy.stats
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import mean_absolute_error, r2_score

import tilestream
from tests.support.cohorts import write_rows
from tests.support.stores import make_store
from tilestream.errors import InputError
from tilestream.fitting.evaluate import Predictions, evaluate, widening, with_intervals
from tilestream.fitting.fit import fit
from tilestream.fitting.metrics import bootstrap
from tilestream.fitting.tile_labels import number_regions


def square(row, col, name, side=2):
    x, y, size = col * 224, row * 224, side * 224
    ring = [[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": {"name": name}}}


def test_regions_of_one_slide_are_held_out_and_a_lone_one_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(36, 6))
    x += 5 * (np.arange(36) % 6 >= 3)[:, None]
    write_rows(tmp_path / "out" / "s.zarr", x, fingerprint="image")
    shapes = [square(0, 0, "left"), square(4, 1, "left"), square(0, 4, "right")]
    config = {
        "embeddings": str(tmp_path / "out"), "target": {"annotations": str(tmp_path)}, "head": {"name": "side", "kind": "classify", "model": "linear"},
        "save": str(tmp_path / "side.safetensors"),
    }  # fmt: skip
    (tmp_path / "s.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    with pytest.raises(InputError, match=r"the class 'right' is one region: nothing is left to judge it by. Draw another region"):
        fit(config)
    (tmp_path / "s.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [*shapes, square(4, 4, "right")]}))
    found = fit(config)
    assert found.evaluation.metrics["accuracy"].value == 1
    assert found.evaluation.patients == 4
    assert len(found.evaluation.by_fold) == 2
    assert "drawn regions were held out, not patients" in found.evaluation.notes[0]
    assert "regions never seen" in found.lines[1]


def test_regions_are_tiles_of_a_class_that_touch(tmp_path):
    make_store(tmp_path / "s.zarr", 4, 4)
    label = np.array([[0, 0, -1, 1], [-1, 0, -1, 1], [1, -1, 0, 0], [1, -1, 0, 1]]).ravel()
    row = np.flatnonzero(label >= 0)
    slides = [tilestream.open(tmp_path / "s.zarr")]
    found = number_regions(slides, np.zeros(len(row), int), row, label[row])
    places = np.full(16, -1)
    places[row] = found
    # The second and third square of class 0 touch at a corner; the tile of class 1 in the last corner touches none of its kind.
    assert len({places[0], places[1], places[5], places[10], places[14]}) == 1
    assert len({places[3], places[8], places[15]}) == 3
    assert places[3] == places[7]


def test_intervals_of_folds_are_wider_and_hold_the_value():
    chance = np.random.default_rng(0)
    n = 40
    label = np.arange(n) % 2
    positive = np.clip(0.5 + 0.1 * (label * 2 - 1) + chance.normal(scale=0.2, size=n), 0, 1)
    scores = np.stack([1 - positive, positive], axis=1)

    def of(fold):
        return Predictions("classes", ("a", "b"), label, np.full(n, np.nan), np.zeros(n, bool), scores, fold, np.arange(n))

    one, five = (with_intervals(of(fold), 0) for fold in (np.zeros(n, int), np.arange(n) % 5))
    plain = bootstrap(of(np.zeros(n, int)).measure, np.arange(n), 1000, 0)
    assert widening(5) == pytest.approx(1.5)
    for name in ("auroc", "accuracy", "kappa"):
        assert (one[name].low, one[name].high) == pytest.approx(plain[name])
        assert five[name].value - five[name].low == pytest.approx(1.5 * (one[name].value - one[name].low))
        assert five[name].low <= five[name].value <= five[name].high <= 1


@pytest.mark.parametrize("right", [True, False])
def test_few_patients_who_all_agree_leave_room_for_doubt(right):
    label = np.array([0, 0, 1, 1, 1, 1])
    positive = np.where((label == 1) == right, 0.9, 0.1)
    found = with_intervals(
        Predictions(
            "classes",
            ("a", "b"),
            label,
            np.full(6, np.nan),
            np.zeros(6, bool),
            np.stack([1 - positive, positive], axis=1),
            label,
            np.arange(6),
        ),
        0,
    )
    share = scipy.stats.beta.ppf(0.975, 1, 2)  # Clopper and Pearson's limit for none of two, the patients of the rarer class
    for name, span in (("auroc", 1), ("accuracy", 1)) + (("kappa", 2),) * right:
        value, low, high = (1, 1 - span * share, 1) if right else (0, 0, share)
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((value, low, high))


@pytest.mark.parametrize(
    ("task", "fold", "words"),
    [
        ("survival", np.arange(6), "c_index has no value: no fold holds two patients"),
        ("classes", np.zeros(6, int), "auroc has no value: what is tested lacks a class"),
        ("regression", np.zeros(6, int), "r2 has no value: all values are equal"),
    ],
)
def test_a_metric_that_has_no_value_is_said_to_have_none_and_is_not_compared(task, fold, words):
    scores = np.full((6, 2 if task == "classes" else 1), 0.5)
    value = np.arange(6.0) if task == "survival" else np.ones(6)
    found = Predictions(
        task, ("a", "b") if task == "classes" else (), np.zeros(6, int), value, np.ones(6, bool), scores, fold, np.arange(6)
    )
    notes = evaluate(found, {"majority": found}, 0).notes
    assert any(note.startswith(words) for note in notes)
    assert not any("adds nothing" in note for note in notes)


@pytest.mark.parametrize("kind", ["slide", "classify", "numbers"])
def test_what_needs_no_head_knows_what_is_learned_from_only(tmp_path, kind):
    """A table that says what is tested leaves one fold; the shares and the mean are those of the others, as a dummy of scikit-learn's has them."""
    chance = np.random.default_rng(3)
    label = (chance.random(24) < 0.7).astype(int)
    value, test = chance.normal(size=24) + 5, np.arange(24) % 3 == 0
    for i in range(24):
        write_rows(tmp_path / "out" / f"s{i:02}.zarr", chance.normal(size=(36, 4)) + label[i], fingerprint=f"image{i}")
    lines = [f"s{i:02},p{i},{'ab'[label[i]]},{value[i]},{'test' if test[i] else 'train'}" for i in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide,patient,kind,size,part", *lines]) + "\n")
    column = {"column": "size", "regression": True} if kind == "numbers" else {"column": "kind"}
    head = {"name": "h", "kind": "classify" if kind == "classify" else "slide", "model": "linear" if kind == "classify" else "mean"}
    target = {"slides": str(tmp_path / "labels.csv"), **column}
    found = fit(
        {
            "embeddings": str(tmp_path / "out"),
            "target": target,
            "head": head,
            "split": {"column": "part"},
            "save": str(tmp_path / "h.safetensors"),
        }
    )
    told = found.evaluation.baselines["majority"]
    if kind == "numbers":
        dummy = DummyRegressor().fit(np.zeros((16, 1)), value[~test]).predict(np.zeros((8, 1)))
        assert told["r2"].value == pytest.approx(r2_score(value[test], dummy))
        assert told["mean_absolute_error"].value == pytest.approx(mean_absolute_error(value[test], dummy))
    else:
        shares = DummyClassifier(strategy="prior").fit(np.zeros((16, 1)), label[~test]).predict_proba(np.zeros((1, 1)))[0]
        assert told["accuracy"].value == pytest.approx(np.mean(label[test] == shares.argmax()))
        assert told["calibration_error"].value == pytest.approx(abs(np.mean(label[test] == shares.argmax()) - shares.max()))
    assert not any("nan" in note for note in found.evaluation.notes)


def test_numbers_that_are_all_one_are_refused(tmp_path):
    for i in range(6):
        write_rows(tmp_path / "out" / f"s{i}.zarr", np.random.default_rng(i).normal(size=(36, 4)), fingerprint=f"image{i}")
    (tmp_path / "labels.csv").write_text("slide,patient,size\n" + "".join(f"s{i},p{i},{'2' if i % 2 else '2.0'}\n" for i in range(6)))
    target = {"slides": str(tmp_path / "labels.csv"), "column": "size", "regression": True}
    given = {
        "embeddings": str(tmp_path / "out"),
        "target": target,
        "head": {"name": "h", "kind": "slide", "model": "mean"},
        "split": {"folds": 2},
    }
    with pytest.raises(InputError, match=r"labels\.csv: size is 2 for all 6 slides: there is nothing to predict"):
        fit({**given, "save": str(tmp_path / "h.safetensors")})
