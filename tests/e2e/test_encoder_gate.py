"""The gate's numbers are those of plain arithmetic."""

import numpy as np
import torch

from benchmarks.encoder_gate import channel_histogram, measure_gate, passes_gate
from tests.support.random_models import tissue


def drawn(pictures=12, tiles=5, dim=6):
    """Features of tiles that lie about their picture's, and those about their class's."""
    draw = np.random.default_rng(0)
    classes = np.arange(pictures) % 3
    middles = draw.normal(size=(3, dim))[classes] * 3 + draw.normal(size=(pictures, dim))
    image = np.repeat(np.arange(pictures), tiles)
    return middles[image] + draw.normal(size=(len(image), dim)), image, classes


def test_the_gates_numbers_are_plain_arithmetic():
    features, image, classes = drawn()
    shifted = features + 0.1
    found = measure_gate(torch.from_numpy(features).float(), torch.from_numpy(shifted).float(), torch.from_numpy(image), classes, seed=0)
    unit, moved = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (features, shifted))
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    variances = np.linalg.eigvalsh(np.cov(features.T))
    assert np.isclose(found["same picture"]["mean"], np.mean(image[near.argmax(1)] == image))
    assert np.isclose(found["stain shift"]["mean"], np.mean((moved @ unit.T).argmax(1) == np.arange(len(image))))
    assert np.isclose(found["participation"]["mean"], variances.sum() ** 2 / (variances**2).sum(), rtol=1e-4)
    assert found["participation"]["low"] < found["participation"]["mean"] <= features.shape[1]
    assert not passes_gate(found)


def test_the_histogram_of_channels_counts_every_pixel_once():
    tiles = tissue(32)
    found = channel_histogram(tiles)
    assert found.shape == (2, 48)
    expected = np.concatenate([np.histogram(channel, bins=16, range=(0, 256))[0] for channel in tiles[0].numpy()]) / 32**2
    assert np.allclose(found[0].square(), expected)
