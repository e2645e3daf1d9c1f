"""Regression tests for the nine errors that the idea's usual few lines of PyTorch hide."""

import numpy as np
import pytest
import torch

import tilestream
from tests.support.images import make_image, write_pyramid
from tests.support.runs import config, embed, opened
from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.models.context import ContextTransformer
from tilestream.models.patch_embed import PatchEmbed


def line(n, dim=16):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_tokens_of_one_image_attend_to_each_other():
    model = ContextTransformer(16, depth=1, heads=2, window=4)
    row, col = torch.tensor([0, 0]), torch.tensor([0, 1])
    tokens = line(2)
    other = tokens.clone()
    other[1] = other[1].flip(0)
    assert (model(tokens, row, col)[0] - model(other, row, col)[0]).abs().max() > 1e-3


def test_tiles_of_one_batch_do_not():
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224"))
    tiles = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = tiles.clone()
    other[1] = 0
    assert torch.equal(encoder(tiles)[[0, 2]], encoder(other)[[0, 2]])


def test_position_is_the_place_not_the_order_of_arrival():
    model = ContextTransformer(16, depth=2, heads=2, window=4)
    row, col, tokens = torch.tensor([0, 0, 1, 9]), torch.tensor([0, 3, 2, 9]), line(4)
    whole = model(tokens, row, col)
    assert torch.equal(model(tokens.flip(0), row.flip(0), col.flip(0)).flip(0), whole)
    assert torch.equal(model(tokens[:3], row[:3], col[:3]), whole[:3])  # the far token was background
    assert not torch.allclose(model(tokens, row, col + 1), whole, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 17), (300, 7)])
def test_rectangles_and_long_grids_work(shape):
    row, col = (a.ravel() for a in torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij"))
    out = ContextTransformer(16, depth=2, heads=2, window=4)(line(len(row)), row, col)
    assert out.shape == (shape[0] * shape[1], 16)
    assert torch.isfinite(out).all()


def test_no_row_of_pixels_is_dropped():
    encoder = PatchEmbed(dim=8, patch=16)
    tiles = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    marked = tiles.clone()
    marked[:, :, 39, 39] = 0
    assert encoder(tiles).shape == (1, 9, 8)
    assert not torch.equal(encoder(tiles), encoder(marked))


def test_no_border_of_an_image_is_dropped(tmp_path):
    image = np.full((500, 600, 3), 255, np.uint8)
    image[499, 599] = 0
    write_pyramid(tmp_path / "a.tif", image, compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out")
    assert opened(tmp_path / "out", "a").embeddings[-1, 0] == pytest.approx(255 - 255 / 224**2, abs=1e-4)


def test_no_statistics_of_the_tile_no_dropout_no_gradients():
    encoder = build_encoder(EncoderSpec("patch_embed", args={"dim": 8}))
    tiles = torch.randint(0, 100, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(encoder(tiles), encoder(tiles * 2), atol=1e-3)  # brightness is not normalised away
    for module in (encoder, build_encoder(EncoderSpec("vit_tiny_patch16_224")), ContextTransformer(16, depth=2, heads=2)):
        assert not any(part.training for part in module.modules())
        assert not any(p.requires_grad for p in module.parameters())


def test_missing_tokens_are_absent_not_zero():
    model = ContextTransformer(16, depth=1, heads=2, window=4, position="none")
    row, col, tokens = torch.tensor([0, 0]), torch.tensor([0, 1]), line(2)
    with_zero = model(torch.cat([tokens, torch.zeros(1, 16)]), torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]))
    assert not torch.allclose(with_zero[:2], model(tokens, row, col), atol=1e-4)


def test_x_and_y_are_not_swapped(tmp_path):
    image = np.full((448, 896, 3), 255, np.uint8)
    image[224:, 672:] = 10
    write_pyramid(tmp_path / "a.tif", image, compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out")
    store = opened(tmp_path / "out", "a")
    dark = store.embeddings[:, 0] < 20
    assert store.obs[dark][["row", "col", "y", "x"]].to_numpy().tolist() == [[1, 3, 224, 672]]
    assert store.to_anndata().obsm["spatial"][dark].tolist() == [[784, 336]]  # x first, for AnnData


def test_each_representation_has_its_own_name_and_shape(tmp_path):
    write_pyramid(tmp_path / "a.tif", make_image(448, 672, seed=1), compression="deflate", levels=1, mpp=0.5)
    embed(tmp_path / "a.tif", tmp_path / "out", encoder="vit_tiny_patch16_224", context={"window": 2, "depth": 2, "heads": 3}, pool="mean")
    store = opened(tmp_path / "out", "a")
    assert (store.embeddings.shape, store.context.shape, store.slide_vector.shape) == ((6, 192), (6, 192), (192,))
    assert not np.allclose(store.embeddings[:], store.context[:], atol=1e-2)
    assert np.allclose(store.slide_vector, store.context[:].mean(axis=0), atol=1e-5)


def test_the_embeddings_of_all_tiles_are_never_in_one_place_while_tiles_are_embedded(tmp_path, monkeypatch):
    write_pyramid(tmp_path / "a.tif", make_image(1200, 1200, seed=1), compression="deflate", levels=1, mpp=0.5)
    from tilestream.store.slide_store import SlideStore

    written = []
    original = SlideStore.write_shard

    def watch(self, shard, arrays, record, **options):
        written.append(len(next(iter(arrays.values()))))
        return original(self, shard, arrays, record, **options)

    monkeypatch.setattr(SlideStore, "write_shard", watch)
    summary = tilestream.run(config(tmp_path / "a.tif", tmp_path / "out", compute={"shard_tiles": 10}))
    assert summary.tiles == 36
    assert sorted(written) == [6, 10, 10, 10]
