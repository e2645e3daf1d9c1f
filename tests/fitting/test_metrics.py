"""Metrics against scikit-learn and lifelines, weights and ties included."""

import numpy as np
import pytest

from tilestream.fitting import metrics

sklearn = pytest.importorskip("sklearn.metrics")
lifelines = pytest.importorskip("lifelines")


def made(seed, n=200, classes=2):
    chance = np.random.default_rng(seed)
    truth = chance.integers(classes, size=n)
    probability = chance.dirichlet(np.ones(classes), size=n).round(1) + 0.01  # ties
    probability[np.arange(n), truth] += chance.random(n).round(1)
    probability /= probability.sum(axis=1, keepdims=True)
    return truth, probability, chance.integers(0, 4, size=n).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_as_scikit_learn_has_them(seed):
    truth, probability, weight = made(seed)
    score = probability[:, 1]
    expected = sklearn.roc_auc_score(truth, score, sample_weight=weight)
    assert metrics.auroc(truth == 1, score, weight) == pytest.approx(expected, abs=1e-12)
    expected = sklearn.average_precision_score(truth, score, sample_weight=weight)
    assert metrics.average_precision(truth == 1, score, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_several_classes_as_scikit_learn_has_them(seed):
    truth, probability, weight = made(seed, classes=4)
    predicted = probability.argmax(axis=1)
    table = metrics.confusion(truth, predicted, 4, weight)
    np.testing.assert_allclose(table, sklearn.confusion_matrix(truth, predicted, sample_weight=weight, labels=range(4)))
    expected = {
        "auroc": np.mean([sklearn.roc_auc_score(truth == k, probability[:, k], sample_weight=weight) for k in range(4)]),
        "balanced": sklearn.balanced_accuracy_score(truth, predicted, sample_weight=weight),
        "accuracy": sklearn.accuracy_score(truth, predicted, sample_weight=weight),
        "f1": sklearn.f1_score(truth, predicted, average="macro", sample_weight=weight),
        "kappa": sklearn.cohen_kappa_score(truth, predicted, sample_weight=weight),
        "quadratic": sklearn.cohen_kappa_score(truth, predicted, weights="quadratic", sample_weight=weight),
    }
    found = {
        "auroc": metrics.macro(metrics.auroc, truth, probability, weight),
        "balanced": metrics.balanced_accuracy(table),
        "accuracy": metrics.accuracy(table),
        "f1": metrics.f1_macro(table),
        "kappa": metrics.cohen_kappa(table),
        "quadratic": metrics.cohen_kappa(table, quadratic=True),
    }
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_concordance_as_lifelines_has_it(seed):
    chance = np.random.default_rng(seed)
    time, died, risk = chance.integers(1, 30, 80).astype(float), chance.random(80) < 0.6, chance.normal(size=80).round(1)
    expected = lifelines.utils.concordance_index(time, -risk, died)
    assert metrics.c_index(time, died, risk, np.ones(80)) == pytest.approx(expected, abs=1e-12)


def test_risks_of_two_heads_are_not_compared():
    """Their level and scale are their own: what holds within each head holds of both."""
    chance = np.random.default_rng(0)
    time, died, risk = chance.permutation(40) + 1.0, chance.random(40) < 0.7, chance.normal(size=40)
    head = np.arange(40) % 2
    moved = np.where(head == 1, 1000 + 50 * risk, risk)
    pairs = [(i, j) for i in range(40) for j in range(40) if head[i] == head[j] and died[i] and time[j] > time[i]]
    expected = np.mean([risk[i] > risk[j] for i, j in pairs])
    for given in (risk, moved):
        assert metrics.c_index(time, died, given, np.ones(40), head) == pytest.approx(expected, abs=1e-12)


def test_survival_curve_as_lifelines_has_it():
    chance = np.random.default_rng(1)
    time, died = chance.integers(1, 30, 80).astype(float), chance.random(80) < 0.6
    fitter = lifelines.KaplanMeierFitter().fit(time, died)
    at, share = metrics.kaplan_meier(time, died)
    np.testing.assert_allclose(share, fitter.survival_function_at_times(at).to_numpy(), atol=1e-12)


def test_weights_are_repetitions():
    truth, probability, weight = made(7, classes=3)
    repeated = np.repeat(np.arange(len(truth)), weight.astype(int))
    ones = np.ones(len(repeated))
    for metric in (metrics.auroc, metrics.average_precision):
        assert metrics.macro(metric, truth, probability, weight) == pytest.approx(
            metrics.macro(metric, truth[repeated], probability[repeated], ones)
        )
    assert metrics.calibration_error(truth, probability, weight) == pytest.approx(
        metrics.calibration_error(truth[repeated], probability[repeated], ones)
    )


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
def test_what_one_class_does_not_define_is_nan(metric):
    assert np.isnan(metric(np.zeros(3, bool), np.arange(3.0), np.ones(3)))


def test_bootstrap_covers_the_truth_and_draws_patients_together():
    chance = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        patients = np.repeat(np.arange(40), 5)  # five equal samples each: as samples, the interval would be far too narrow
        values = np.repeat(chance.normal(size=40), 5)
        low, high = metrics.bootstrap(lambda w, v=values: {"mean": float(np.average(v, weights=w))}, patients, 200, seed)["mean"]
        covered += low <= 0 <= high
    assert 50 <= covered <= 60
