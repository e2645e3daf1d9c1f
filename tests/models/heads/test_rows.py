"""Heads of rows against scikit-learn, plain arithmetic and torch's own layers."""

import numpy as np
import pytest
import torch
from torch import nn

from tilestream.models.heads.rows import LinearHead, MLPHead, NearestHead, PrototypeHead


def rows(n=60, dim=9, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_a_linear_head_and_an_mlp_are_torchs_own_layers():
    x = rows()
    ours = MLPHead(9, 4, hidden=7, seed=3)
    theirs = nn.Sequential(nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 4))
    theirs.load_state_dict(
        {f"{place}.{kind}": value for name, place in (("fc1", 0), ("fc2", 2)) for kind, value in getattr(ours, name).state_dict().items()}
    )
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    linear = LinearHead(9, 4)
    assert torch.allclose(linear(x), x @ linear.fc.weight.T + linear.fc.bias, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in linear.parameters())


@pytest.mark.parametrize("examples", [50, 7])
def test_nearest_rows_vote_as_those_of_scikit_learn(examples):
    neighbours = pytest.importorskip("sklearn.neighbors")
    known, labels, x = rows(examples, seed=1), torch.arange(examples) % 3, rows()
    head = NearestHead(9, 3, examples)
    head.rows.copy_(known)
    head.labels.copy_(labels)
    k = min(20, examples)
    model = neighbours.KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = model.fit(known.double(), labels).predict_proba(x.double())
    assert np.abs(torch.softmax(head(x), dim=1).numpy() - expected).max() < 1e-5


def test_prototypes_are_told_apart_by_the_cosine_of_centred_rows():
    head, x = PrototypeHead(9, 3), rows()
    head.centre.copy_(rows(1, seed=5)[0])
    head.prototypes.copy_(rows(3, seed=6))
    centred, prototypes = (x - head.centre).double().numpy(), head.prototypes.double().numpy()
    cosine = centred @ prototypes.T / np.linalg.norm(centred, axis=1)[:, None] / np.linalg.norm(prototypes, axis=1)
    assert np.abs(head(x).numpy() * 0.07 - cosine).max() < 1e-6
