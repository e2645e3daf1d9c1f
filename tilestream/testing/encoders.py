"""The behaviour that every encoder has, whatever it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tilestream.encoders.earth.bands import bands_of


class EncoderSuite:
    """What every encoder keeps: inherit it and give the fixture `encoder`.

    Attributes
    ----------
    tile : int
        Side of the tiles that it is tried with, px; the encoder's own `tile_size` goes before it.
    tolerance : float
        Largest difference of a tile's vector between batches of other sizes, relative to its largest value.
    """

    tile: int = 224
    tolerance: float = 1e-5

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls) -> nn.Module:
        """The module under test."""
        pytest.fail("a suite of an encoder has a fixture `encoder`")

    def tiles(self, encoder: nn.Module, count: int = 5) -> Tensor:
        """(count, 3, side, side) uint8 of noise, or (count, bands, side, side) float32 for an encoder of bands; the same at every call."""
        side, generator = int(getattr(encoder, "tile_size", None) or self.tile), torch.Generator().manual_seed(0)
        bands = bands_of(encoder)
        if bands:
            return torch.randn((count, bands if isinstance(bands, int) else len(bands), side, side), generator=generator)
        return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)

    @torch.inference_mode()
    def test_tiles_become_finite_vectors_of_dim_features(self, encoder: nn.Module) -> None:
        """(n, 3, side, side) uint8, or (n, bands, side, side) float32, to (n, dim), or (n, k * k, dim) for patch tokens."""
        out = encoder(self.tiles(encoder))
        assert isinstance(encoder.dim, int)
        assert out.shape[0] == 5
        assert out.shape[-1] == encoder.dim
        assert out.ndim in (2, 3)
        assert out.is_floating_point()
        assert torch.isfinite(out).all()

    @torch.inference_mode()
    def test_a_tile_does_not_depend_on_its_batch(self, encoder: nn.Module) -> None:
        """Statistics of a batch, or dropout left on, would show here."""
        tiles = self.tiles(encoder)
        whole, alone = encoder(tiles), torch.cat([encoder(tile[None]) for tile in tiles])
        assert float((whole - alone).abs().max()) <= self.tolerance * float(whole.abs().max())

    @torch.inference_mode()
    def test_the_same_tiles_give_the_same_bytes(self, encoder: nn.Module) -> None:
        """Nothing random is left on."""
        tiles = self.tiles(encoder)
        assert torch.equal(encoder(tiles), encoder(tiles))

    @torch.inference_mode()
    def test_other_tiles_give_other_vectors(self, encoder: nn.Module) -> None:
        """The vector says something of the pixels."""
        tiles = self.tiles(encoder, 2)
        out = encoder(tiles)
        assert not torch.equal(out[0], out[1])

    def test_it_is_ready_for_inference(self, encoder: nn.Module) -> None:
        """In eval mode, without gradients."""
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
