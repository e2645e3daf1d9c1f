"""Heads of tiles: what they learn, what they say of chance, and the same bytes from the same seed."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tilestream.errors import ConfigError
from tilestream.fitting.training.inner import keep_back, parts_in_turn, softmax, temperature
from tilestream.fitting.training.tile_models import SETTINGS, STRENGTHS, choose_strength, scores_of, settings_of, train_tiles

MODELS = list(SETTINGS)


def made(seed, n=600, d=12, patients=20, signal=1.5):
    chance = np.random.default_rng(seed)
    label = chance.integers(3, size=n)
    x = chance.normal(size=(n, d)).astype(np.float32) + np.linspace(0, 20, d, dtype=np.float32)
    x[:, :3] += signal * np.eye(3, dtype=np.float32)[label]
    return x, label, np.arange(n) % patients


@pytest.mark.parametrize("model", MODELS)
def test_what_is_there_is_learned_and_probabilities_mean_what_they_say(model):
    x, label, patients = made(0, signal=2.5)
    fresh, truth, _ = made(1, n=3000, signal=2.5)
    probability = softmax(scores_of(train_tiles(model, x, label, patients, 3, {}, 0)[0], fresh))
    best = (np.argmax(fresh[:, :3] - np.linspace(0, 20, 12)[:3], axis=1) == truth).mean()  # the rule that made the data
    hit = probability.argmax(axis=1) == truth
    assert hit.mean() > best - 0.06
    sure = probability.max(axis=1)
    assert abs(sure.mean() - hit.mean()) < 0.1


@pytest.mark.parametrize("model", MODELS)
def test_without_a_signal_nothing_is_claimed(model):
    x, label, patients = made(0, signal=0)
    fresh, truth, _ = made(1, n=3000, signal=0)
    probability = softmax(scores_of(train_tiles(model, x, label, patients, 3, {}, 0)[0], fresh))
    assert abs((probability.argmax(axis=1) == truth).mean() - 1 / 3) < 0.04
    assert probability.max(axis=1).mean() < 0.6


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_bytes(model):
    x, label, patients = made(2)
    first, second = (train_tiles(model, x, label, patients, 3, {}, 5)[0].state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_prototype_needs_one_tile_of_each_class():
    x, label, _ = made(3)
    few = np.array([np.flatnonzero(label == k)[0] for k in range(3)])
    fresh, truth, _ = made(4, signal=6)
    found = train_tiles("prototypes", x[few] + 4.5 * np.eye(3, 12, dtype=np.float32), label[few], np.arange(3), 3, {}, 0)[0]
    assert (scores_of(found, fresh).argmax(axis=1) == truth).mean() > 0.8


def test_patients_are_kept_back_whole_and_no_class_is_lost():
    label = np.array([0] * 30 + [1] * 2)
    patients = np.array([i // 3 for i in range(30)] + [90, 90])
    kept = keep_back(patients, label, 0)
    assert kept.any()
    assert all(len(set(kept[patients == p].tolist())) == 1 for p in set(patients.tolist()) - {90})
    assert not kept[label == 1].any()


def test_few_patients_are_all_kept_back_in_turn_and_many_as_far_as_is_enough():
    patients = np.repeat(np.arange(10), 3)
    label = np.where(patients < 5, 0, 1)
    parts = parts_in_turn(patients, label, 0)
    assert len(parts) == 8
    np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
    assert all(len(set(kept[patients == p].tolist())) == 1 for kept in parts for p in range(10))
    lonely = np.where(patients == 9, 2, label)  # a class of one patient is always learned
    np.testing.assert_array_equal(np.sum(parts_in_turn(patients, lonely, 0), axis=0), patients != 9)
    many = np.arange(2000)
    judged = sum(int(kept.sum()) for kept in parts_in_turn(many, many % 2, 0))
    assert 64 <= judged <= 64 + 2000 // 8
    assert parts_in_turn(np.zeros(4, int), np.array([0, 0, 1, 1]), 0) == []


@pytest.mark.slow
def test_the_penalty_is_chosen_by_all_patients_of_a_few():
    """Judged by cross-validation that scikit-learn does: one quarter of ten patients often chose otherwise."""
    for seed in range(4):
        chance = np.random.default_rng(seed)
        label = np.arange(10) % 2
        x = chance.normal(size=(10, 6)) + 1.5 * label[:, None]
        splits = [(np.flatnonzero(~kept), np.flatnonzero(kept)) for kept in parts_in_turn(np.arange(10), label, 0)]
        losses = []
        for strength in STRENGTHS:
            lost = []
            for learned, judged in splits:
                scaler = StandardScaler().fit(x[learned])
                # With two classes ours has weights of its own for each, half of scikit-learn's: the penalty is then half.
                model = LogisticRegression(C=2 * strength, tol=1e-10, max_iter=5000).fit(scaler.transform(x[learned]), label[learned])
                told = model.predict_proba(scaler.transform(x[judged]))
                lost += (-np.log(told[np.arange(len(judged)), label[judged]])).tolist()
            losses.append(np.mean(lost))
        assert choose_strength(x, label, np.arange(10), 2, 0)[0] == STRENGTHS[int(np.argmin(losses))]


def test_temperature_is_where_the_loss_is_least():
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(4000, 3)) * 2
    label = np.array([chance.choice(3, p=p) for p in softmax(scores)])
    assert temperature(scores * 3, label) == pytest.approx(3, rel=0.1)
    assert temperature(scores, np.zeros(4000, int)) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"hiden": 3}, "mlp has no such setting; it has hidden"),
        ({"hidden": 0}, "must be a number above 0"),
        ({"hidden": True}, "True"),
        ({"hidden": 0.5}, "head.args.hidden: 0.5, but it must be a whole number"),
        ({"epochs": 2.5}, "head.args.epochs: 2.5, but it must be a whole number"),
        ({"learning_rate": float("inf")}, "learning_rate: inf, but it must be a finite number"),
    ],
)
def test_settings_that_a_model_does_not_have_are_refused(args, words):
    with pytest.raises(ConfigError, match=words):
        settings_of("mlp", args, SETTINGS)
