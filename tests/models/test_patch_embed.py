"""Pixels become tokens in row-major order, all of them, normalised by fixed numbers."""

import pytest
import torch

from tilestream.errors import ConfigError
from tilestream.models import patch_embed
from tilestream.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, PatchEmbed, normalise_pixels, pad_to_patches, unfold_patches


def tiles(height=32, width=48, n=2):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_tokens_are_a_strided_convolution_in_row_major_order():
    encoder = PatchEmbed(dim=8, patch=16)
    pixels = normalise_pixels(tiles(), IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    kernel = encoder.proj.weight.view(8, 3, 16, 16)
    expected = torch.nn.functional.conv2d(pixels, kernel, encoder.proj.bias, stride=16)  # (2, 8, 2, 3)
    assert torch.allclose(encoder(tiles()), expected.flatten(2).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)])
def test_normalising_is_that_of_training_code(mean, std):
    expected = (tiles().float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(normalise_pixels(tiles(), mean, std, torch.float32), expected, atol=1e-6)
    half = normalise_pixels(tiles(), mean, std, torch.bfloat16)
    assert torch.equal(half, normalise_pixels(tiles(), mean, std, torch.float32).bfloat16())


def test_a_permuted_view_gives_what_its_copy_gives():
    view = tiles().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    encoder = PatchEmbed(dim=8)
    assert not view.is_contiguous()
    assert torch.equal(encoder(view), encoder(tiles()))


@pytest.mark.parametrize("size", [(1, 1), (16, 17), (40, 33), (48, 32)])
def test_sides_that_do_not_divide_are_padded_with_white(size):
    padded = pad_to_patches(tiles(*size), 16)
    rows, cols = -(-size[0] // 16), -(-size[1] // 16)
    assert padded.shape[2:] == (16 * rows, 16 * cols)
    assert (padded[:, :, size[0] :] == 255).all()
    assert (padded[:, :, :, size[1] :] == 255).all()
    assert torch.equal(padded[:, :, : size[0], : size[1]], tiles(*size))
    assert PatchEmbed(dim=8)(tiles(*size)).shape == (2, rows * cols, 8)


def test_unfolding_never_drops_pixels():
    with pytest.raises(AssertionError, match="would be dropped"):
        unfold_patches(torch.zeros(1, 3, 40, 32), 16)


def test_weights_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    one, two, other = PatchEmbed(seed=3), PatchEmbed(seed=3), PatchEmbed(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.proj.weight, two.proj.weight)
    assert not torch.equal(one.proj.weight, other.proj.weight)


def test_floating_point_pixels_are_refused():
    with pytest.raises(TypeError, match=r"uint8 pixels, got torch.float32"):
        PatchEmbed()(tiles().float())


@pytest.mark.parametrize(("key", "value"), [("dim", 0), ("patch", "16"), ("patch", True), ("dim", 1.5)])
def test_numbers_that_do_not_fit_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"encoder.args.{key}"):
        PatchEmbed(**{key: value})


def test_a_module_is_filled_alike_in_any_mode(monkeypatch):
    """Large modules are filled by threads, which do not know that they were asked in inference mode."""
    filled = []
    for large in (0, 10**9):
        monkeypatch.setattr(patch_embed, "LARGE", large)
        for mode in (True, False):
            with torch.inference_mode(mode):
                layer = torch.nn.Linear(8, 8)
                patch_embed.seeded_init(layer, 3)
                filled.append(layer.weight.detach().clone())
    assert torch.equal(filled[0], filled[1])
    assert torch.equal(filled[2], filled[3])


def test_what_a_file_will_fill_is_left_as_it_is():
    with patch_embed.weights_follow():
        blank = patch_embed.BlankLinear(4, 4)
        blank.weight.data.fill_(3)
        patch_embed.seeded_init(blank, 0)
    assert (blank.weight == 3).all()
    patch_embed.seeded_init(blank, 0)
    assert (blank.weight != 3).all()
