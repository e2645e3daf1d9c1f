"""An encoder on a processor in strips, one lane a core: the rows are those of each tile alone, whatever the batch and the threads."""

import threading

import pytest
import torch
from torch import nn

from tilestream.models.vit import VisionTransformer
from tilestream.models.vit_config import ViTConfig
from tilestream.stages.encoding.host import STRIP_TILES, HostEncoder


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Watched(nn.Module):
    """Sums of pixels; remembers shapes, and returns once two threads are in it, where `together`."""

    dim, reentrant = 1, True

    def __init__(self, *, together=False):
        super().__init__()
        self.seen, self.threads = [], set()
        self._meet = threading.Barrier(2 if together else 1, timeout=60)

    def forward(self, tiles):
        self.seen.append(len(tiles))
        self.threads.add((threading.get_ident(), torch.get_num_threads()))
        self._meet.wait()
        return tiles.double().sum(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 16])
def test_strips_are_of_one_size_and_give_every_row_in_its_place(count):
    encoder = Watched()
    tiles = torch.randint(0, 256, (count, 4, 4, 3), dtype=torch.uint8)
    found = HostEncoder(encoder, "watched", 16)(tiles)
    assert torch.equal(found[:, 0], tiles.double().sum(dim=(1, 2, 3)))
    assert set(encoder.seen) == {STRIP_TILES}


def test_batches_smaller_than_a_strip_stay_what_was_asked_for():
    encoder = Watched()
    assert len(HostEncoder(encoder, "watched", 2)(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))) == 1
    assert encoder.seen == [2]


def test_two_cores_compute_two_strips_side_by_side_and_leave_torch_its_threads(two_threads):
    encoder = Watched(together=True)
    run = HostEncoder(encoder, "watched", 16)
    run(torch.zeros(run.at_once, 4, 4, 3, dtype=torch.uint8))
    assert encoder.seen == [STRIP_TILES, STRIP_TILES]
    assert [threads for _, threads in encoder.threads] == [1, 1]
    assert torch.get_num_threads() == 2
    elsewhere = []
    late = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert elsewhere == [2]


def test_an_encoder_that_threads_may_not_share_and_an_exact_run_get_whole_batches(two_threads):
    shared, alone = Watched(), Watched()
    alone.reentrant = False
    for encoder, exact in ((shared, True), (alone, False)):
        HostEncoder(encoder, "watched", 16, exact=exact)(torch.zeros(5, 4, 4, 3, dtype=torch.uint8))
        assert encoder.seen == [16]


def test_rows_of_a_transformer_do_not_depend_on_batch_threads_or_neighbours(two_threads):
    encoder = VisionTransformer(ViTConfig(dim=64, depth=2, heads=2, patch=16, img_size=128))
    tiles = torch.randint(0, 256, (16, 128, 128, 3), dtype=torch.uint8)
    rows = HostEncoder(encoder, "small", 16)(tiles)
    order = torch.randperm(16)
    assert torch.equal(HostEncoder(encoder, "small", 16)(tiles[order]), rows[order])
    assert torch.equal(torch.cat([HostEncoder(encoder, "small", 8)(part) for part in tiles.split(5)]), rows)
    torch.set_num_threads(1)
    assert torch.equal(HostEncoder(encoder, "small", 16)(tiles), rows)


@pytest.mark.parametrize(
    "options", [{}, {"registers": 3, "qk_norm": True, "gated": True, "layer_scale": 0.1}, {"position": "rope", "depth": 1}]
)
def test_the_class_token_alone_is_the_one_among_all_tokens(options):
    config = {"dim": 64, "depth": 2, "heads": 2, "patch": 16, "img_size": 64} | options
    one, all_tokens = VisionTransformer(ViTConfig(**config)), VisionTransformer(ViTConfig(**config, output="class+mean"))
    tiles = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(one.double()(tiles), all_tokens.double()(tiles)[:, :64], rtol=1e-10, atol=1e-10)
