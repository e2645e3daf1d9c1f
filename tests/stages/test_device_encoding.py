"""An encoder in batches of one shape: halved where memory is short, refused where nothing fits. The CUDA graph itself is measured on a GPU."""

import os
import types

import pytest
import torch
from torch import nn

from tilestream.errors import ConfigError, InterruptedRunError
from tilestream.sources.base import PixelKind
from tilestream.stages import hardware as machine
from tilestream.stages.encoding import compiling, host
from tilestream.stages.encoding.device import DeviceEncoder
from tilestream.stages.encoding.host import HostEncoder, check_output, packs_linear


class Greedy(nn.Module):
    """Sums of pixels; needs memory for each tile, of which there is room for a few only."""

    dim = 1

    def __init__(self, room):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.room, self.seen = room, []

    def forward(self, tiles):
        self.seen.append(len(tiles))
        if len(tiles) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return tiles.float().sum(dim=(1, 2, 3))[:, None] * self.weight


class OnCpu(DeviceEncoder):
    """Without a graph, as for an encoder that cannot be captured."""

    def _capture(self, path):
        path.input = self._blank(self.batch)
        check_output(path.forward(path.input), self.batch, self.name)


@pytest.mark.parametrize("room", [1, 3, 8, 100])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(room):
    encoder = Greedy(room)
    runner = OnCpu(encoder, "greedy", 4, 16, torch.device("cpu"))
    assert runner.batch == {1: 1, 3: 2, 8: 8, 100: 16}[room]
    assert len(runner.notes) == {1: 4, 3: 3, 8: 1, 100: 0}[room]
    tiles = torch.randint(0, 256, (37, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(runner(tiles)[:, 0], tiles.float().sum(dim=(1, 2, 3)))


def test_tiles_of_bands_have_batches_of_their_own_kind():
    runner = OnCpu(Greedy(3), "greedy", 4, 16, torch.device("cpu"), PixelKind(5))
    tiles = torch.randn(7, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(runner(tiles)[:, 0], tiles.sum(dim=(1, 2, 3)))
    blank = runner._blank(2)
    assert (blank.shape, blank.dtype) == ((2, 4, 4, 5), torch.float32)


def test_memory_that_gets_short_later_halves_the_batch_and_goes_on():
    encoder = Greedy(100)
    runner = OnCpu(encoder, "greedy", 4, 16, torch.device("cpu"))
    encoder.room = 5
    tiles = torch.randint(0, 256, (40, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(runner(tiles)[:, 0], tiles.float().sum(dim=(1, 2, 3)))
    assert runner.batch == 4
    assert any("going on with" in note for note in runner.notes)


def test_where_not_even_one_tile_fits_the_run_ends_with_advice():
    with pytest.raises(InterruptedRunError, match=r"does not hold a batch of one tile.*smaller encoder"):
        OnCpu(Greedy(0), "greedy", 4, 16, torch.device("cpu"))


class Block(nn.Linear):
    """A layer and what follows it."""

    def forward(self, values):
        return super().forward(values).relu()


class Blocks(nn.Module):
    """Two blocks over the mean of each channel."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 3), Block(3, 3)).requires_grad_(requires_grad=False)

    def forward(self, tiles):
        return self.blocks(tiles.float().mean(dim=(2, 3)))


@pytest.fixture
def any_compiler(monkeypatch, tmp_path):
    """What is compiled runs as it is; nothing is kept in the user's own cache."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))


def test_both_ways_of_an_encoder_share_its_weights_and_the_eager_one_stays_as_it_is(any_compiler):
    encoder = Blocks()
    runner = OnCpu(encoder, "blocks", 4, 16, torch.device("cpu"))
    tiles = torch.randint(0, 256, (37, 4, 4, 3), dtype=torch.uint8)
    before = runner(tiles)
    assert runner.compile()
    twin = runner._compiled.module
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in encoder.parameters()]
    assert all(block._compiled_call_impl is None for block in encoder.blocks)
    assert torch.equal(runner(tiles), before)
    torch.testing.assert_close(runner(tiles, compiled=True), before)


def test_what_cannot_be_compiled_runs_eager_and_says_so_once(any_compiler, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    runner = OnCpu(Blocks(), "blocks", 4, 16, torch.device("cpu"))
    assert not runner.compile()
    assert not runner.compile()
    assert runner.notes == ["the encoder runs uncompiled: RuntimeError: no compiler here"]
    assert len(runner(torch.zeros(3, 4, 4, 3, dtype=torch.uint8))) == 3


def test_what_was_measured_is_recalled_for_the_same_shape_alone(any_compiler):
    device, measured = torch.device("cpu"), compiling.Measured(256, 0.001)
    compiling.remember(Blocks(), 224, device, measured)
    assert compiling.recall(Blocks(), 224, device) == measured
    assert compiling.recall(Blocks(), 256, device) is None
    assert compiling.recall(Blocks().double(), 224, device) is None
    compiling._record(Blocks(), 224, device).write_text('{"batch": 0')
    assert compiling.recall(Blocks(), 224, device) is None


def test_kernels_on_disk_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiling, "CACHE_BYTES", 10)
    folder = compiling.user_cache("kernels")
    folder.mkdir(parents=True)
    (folder / "small").write_bytes(bytes(10))
    compiling.keep_kernels()
    assert (folder / "small").exists()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (folder / "more").write_bytes(bytes(1))
    compiling.keep_kernels()
    assert not list(folder.parent.iterdir())


def test_where_there_is_no_home_nothing_is_kept_and_all_goes_on(any_compiler, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiling.Path, "home", homeless)
    device, measured = torch.device("cpu"), compiling.Measured(256, 0.001)
    with compiling.one_measures():
        compiling.remember(Blocks(), 224, device, measured)
        assert compiling.recall(Blocks(), 224, device) is None
    compiling.keep_kernels()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_batches_are_filled_up_to_one_shape():
    encoder = Greedy(100)
    run = HostEncoder(encoder, "greedy", 8)
    assert len(run(torch.zeros(3, 4, 4, 3, dtype=torch.uint8))) == 3
    assert encoder.seen == [8]


class Layers(nn.Module):
    """Two layers over the pixels of each row of a tile; the second one's weights are made anew at each call."""

    dim = 32

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 48).requires_grad_(requires_grad=False)
        self.second = nn.Parameter(torch.randn(48, 32), requires_grad=False)

    def forward(self, tiles):
        rows = tiles.float().mean(dim=1) / 255
        return nn.functional.linear(self.first(rows).relu(), self.second.T).mean(dim=1)


@pytest.mark.skipif(not packs_linear(), reason="needs a processor with AVX-512")
@pytest.mark.parametrize("room", [0, 2**20])
def test_layers_packed_for_a_processor_give_what_they_give_in_float64(room, monkeypatch):
    monkeypatch.setattr(host, "PACKED_BYTES", room)
    encoder = Layers()
    tiles = torch.randint(0, 256, (11, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        run = HostEncoder(encoder, "layers", 8)
        found = torch.cat([run(tiles[:8]), run(tiles[8:])])
        rows = tiles.permute(0, 3, 1, 2).double().mean(dim=1) / 255
        first = (rows @ encoder.first.weight.double().T + encoder.first.bias.double()).relu()
        wanted = (first @ encoder.second.double()).mean(dim=1)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(run(tiles[8:]), run(tiles.flip(0)[:3].flip(0)))
        exact = HostEncoder(encoder, "layers", 8, exact=True)
        assert torch.equal(exact(tiles[:8]), encoder(tiles[:8].permute(0, 3, 1, 2)))


@pytest.mark.parametrize("out", [torch.zeros(4), torch.zeros(3, 2), torch.zeros(4, 2, dtype=torch.int32), [1, 2, 3, 4]])
def test_what_is_no_result_of_an_encoder_is_refused(out):
    with pytest.raises(ConfigError, match=r"encoder\.name: some gave .* for 4 tiles"):
        check_output(out, 4, "some")


def test_workers_of_one_machine_share_its_devices_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, index in ((0, 0), (1, 1), (2, 0), ("named", 0)):
        worker = types.SimpleNamespace(get_worker=lambda name=name: types.SimpleNamespace(name=name, address=""))
        monkeypatch.setitem(__import__("sys").modules, "distributed", worker)
        assert machine.pick_device("auto") == torch.device("cuda", index)
    assert machine.pick_device("cuda:1") == torch.device("cuda:1")
