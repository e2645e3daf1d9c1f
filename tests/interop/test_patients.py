"""Vectors of patients over several slides: the mean and the attention of theirs, and nobody else's."""

import csv

import numpy as np
import pytest
import torch

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import given
from tilestream.errors import ConfigError, InputError
from tilestream.models.pooling import GatedAttentionPool


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients")
    with (folder / "slides.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "site"])
        for k, patient in enumerate(["p2", "p1", "p2"]):
            writer.writerow(
                [write_pyramid(folder / f"{k}.tif", make_image(200, 200, k), compression="deflate", levels=1, mpp=0.5), patient, ""]
            )
    tilestream.run(given(folder / "slides.csv", folder / "out"))
    return folder / "out"


def slide_vectors(output):
    return [tilestream.open(output / f"{k}.zarr").slide_vector for k in range(3)]


def test_the_mean_of_each_patients_slides(output):
    a, b, c = slide_vectors(output)
    found = tilestream.patient_vectors(output)
    assert list(found.obs_names) == ["p1", "p2"]
    assert found.obs["slides"].tolist() == [1, 2]
    assert np.allclose(found.X, [b, (a + c) / 2])
    assert found.uns["slides"].values.tolist() == [["p1", "1", 1.0], ["p2", "0", 0.5], ["p2", "2", 0.5]]
    assert np.allclose(tilestream.patient_vectors(output, pool="mean+max").X[1], [*(a + c) / 2, *np.maximum(a, c)])


def test_attention_weighs_slides_by_the_weights_of_a_file(output, tmp_path):
    a, _, c = (torch.from_numpy(vector).double() for vector in slide_vectors(output))
    pool = GatedAttentionPool(12, seed=4)
    torch.save(pool.state_dict(), tmp_path / "w.pth")
    logits = [pool.attention_w(torch.tanh(pool.attention_v(x)) * torch.sigmoid(pool.attention_u(x))) for x in (a, c)]
    shares = torch.softmax(torch.cat(logits), dim=0)
    found = tilestream.patient_vectors(output, pool="gated_attention", weights=tmp_path / "w.pth")
    assert np.allclose(found.X[1], (shares[0] * a + shares[1] * c).numpy(), atol=1e-5)
    assert np.allclose(found.uns["slides"]["share"], [1, *shares.tolist()])
    with pytest.raises(ConfigError, match=r"pool gated_attention learns, and no weights are given"):
        tilestream.patient_vectors(output, pool="gated_attention")


def test_slides_without_the_column_are_named(output):
    with pytest.raises(InputError, match=r"0, 1, 2 have no column 'site'"):
        tilestream.patient_vectors(output, "site")
