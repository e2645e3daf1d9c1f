"""A module handed to `run` makes a store as a named encoder does, and a store says what its vectors are."""

import numpy as np
import pytest
from torch import nn

import tilestream
from tests.support.images import make_image, write_svs


class Means(nn.Module):
    dim = 3
    vector = "mean colour"

    def forward(self, images):
        return images.float().mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("encoder", "dim", "vector"),
    [
        (Means(), 3, "mean colour"),
        (Means, 3, "mean colour"),
        ({"name": "patch_embed", "args": {"dim": 4, "patch": 112}}, 4, "patch tokens"),
    ],
)
def test_the_store_holds_the_vectors_and_says_what_they_are(tmp_path, encoder, dim, vector):
    write_svs(tmp_path / "a.svs", make_image(500, 500, seed=3))
    tilestream.run(
        {
            "slides": str(tmp_path / "a.svs"), "output": {"path": str(tmp_path / "out"), "dtype": "float32"},
            "tiles": {"level": 0, "tissue": "none"}, "encoder": encoder, "compute": {"scheduler": "inline"},
        }
    )  # fmt: skip
    slide = tilestream.open(tmp_path / "out")["a"]
    assert slide.embeddings.shape == (9, dim)
    assert np.isfinite(np.asarray(slide.embeddings[:])).all()
    assert slide.recipe["encoder"]["vector"] == vector
