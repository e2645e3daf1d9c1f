"""Heads of tiles: what they learn, what they say of chance, and the same bytes from the same seed."""

import numpy as np
import pytest
import torch

from tilestream.errors import ConfigError
from tilestream.fitting.training.inner import keep_back, softmax, temperature
from tilestream.fitting.training.tile_models import SETTINGS, scores_of, settings_of, train_tiles

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


def test_temperature_is_where_the_loss_is_least():
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(4000, 3)) * 2
    label = np.array([chance.choice(3, p=p) for p in softmax(scores)])
    assert temperature(scores * 3, label) == pytest.approx(3, rel=0.1)
    assert temperature(scores, np.zeros(4000, int)) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [({"hiden": 3}, "mlp has no such setting; it has hidden"), ({"hidden": 0}, "must be a number above 0"), ({"hidden": True}, "True")],
)
def test_settings_that_a_model_does_not_have_are_refused(args, words):
    with pytest.raises(ConfigError, match=words):
        settings_of("mlp", args, SETTINGS)
