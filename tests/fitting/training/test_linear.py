"""Linear models against scikit-learn and lifelines."""

import numpy as np
import pytest
import torch

from tilestream.fitting.training.linear import cox_loss, fit_cox, fit_logistic, fit_ridge

sklearn = pytest.importorskip("sklearn.linear_model")
lifelines = pytest.importorskip("lifelines")


def made(seed, n=150, d=8, classes=3):
    chance = np.random.default_rng(seed)
    label = chance.integers(classes, size=n)
    x = chance.normal(size=(n, d)) * chance.uniform(0.1, 30, d) + 5
    x[:, 0] += label * 3
    return x, label, chance


def standard(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


@pytest.mark.parametrize("strength", [0.01, 1.0, 10.0])
def test_logistic_regression_as_scikit_learn_has_it(strength):
    x, label, _ = made(0)
    found = fit_logistic(x, label, 3, strength)
    reference = sklearn.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(standard(x), label)
    weight = reference.coef_ / x.std(axis=0)
    np.testing.assert_allclose(found.weight, weight, atol=1e-6)
    expected = reference.predict_proba(standard(x))
    np.testing.assert_allclose(torch.softmax(torch.as_tensor(found.scores(x)), 1), expected, atol=1e-6)


def test_two_classes_are_the_binary_model():
    x, label, _ = made(1, classes=2)
    # Two sets of weights share the penalty: w and -w of half the size each, so that the binary C is half of it.
    found = fit_logistic(x, label, 2, 1.0)
    reference = sklearn.LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(standard(x), label)
    np.testing.assert_allclose(
        torch.softmax(torch.as_tensor(found.scores(x)), 1)[:, 1], reference.predict_proba(standard(x))[:, 1], atol=1e-6
    )


def test_weights_are_repetitions():
    x, label, chance = made(2)
    weight = chance.integers(1, 4, size=len(x)).astype(float)
    x = standard(x)
    repeated = np.repeat(np.arange(len(x)), weight.astype(int))
    reference = sklearn.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, label, sample_weight=weight)
    found = fit_logistic(x, label, 3, 1.0, weight)
    np.testing.assert_allclose(found.weight, reference.coef_, atol=1e-6)
    assert len(repeated) == weight.sum()


@pytest.mark.parametrize("shape", [(150, 8), (12, 40)])
def test_ridge_as_scikit_learn_has_it(shape):
    x, _, chance = made(3, *shape)
    value = x[:, 0] * 2 + chance.normal(size=len(x)) + 40
    found = fit_ridge(x, value, 0.5)
    reference = sklearn.Ridge(alpha=2.0).fit(standard(x), value)
    np.testing.assert_allclose(found.scores(x)[:, 0], reference.predict(standard(x)), atol=1e-8)


def test_a_constant_feature_has_no_weight():
    x, label, _ = made(4)
    x[:, 3] = 7.0
    assert np.all(fit_logistic(x, label, 3, 1.0).weight[:, 3] == 0)


def test_cox_loss_equals_its_formula():
    chance = np.random.default_rng(0)
    time, died, risk = chance.integers(1, 12, 40).astype(float), chance.random(40) < 0.6, chance.normal(size=40)
    expected = -np.mean([risk[i] - np.log(np.exp(risk[time >= time[i]]).sum()) for i in np.flatnonzero(died)])
    assert float(cox_loss(torch.as_tensor(risk), torch.as_tensor(time), torch.as_tensor(died))) == pytest.approx(expected, abs=1e-12)


def test_cox_model_as_lifelines_has_it():
    import pandas as pd

    chance = np.random.default_rng(1)
    x = chance.normal(size=(120, 4))
    time = chance.exponential(np.exp(-x[:, 0]))  # without ties, where lifelines and Breslow agree
    died = chance.random(120) < 0.7
    fitter = lifelines.CoxPHFitter().fit(
        pd.DataFrame({**dict(enumerate(x.T)), "t": time, "e": died}), "t", "e", fit_options={"precision": 1e-12}
    )
    np.testing.assert_allclose(fit_cox(x, time, died, 1e12).weight[0], fitter.params_.to_numpy(), atol=1e-6)
    bound = fit_cox(x, time, died, 0.01)
    assert np.abs(bound.weight).sum() < 0.8 * np.abs(fitter.params_).sum()
