"""An encoder is cast only to what it says it can be; memory is counted from where a run begins."""

import copy
import os

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.encoders import BandCorners
from tilestream.encoders.weights import state_digest, weights_digest
from tilestream.stages import hardware
from tilestream.stages.hardware import cast_copy, cast_encoder, forget_peak, peak_memory


class Own(nn.Module):
    """Follows the contract of encoders, and computes in float32 whatever its weights are."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images):
        return self.linear(images.float().mean(dim=(2, 3)))


class Castable(Own):
    precisions = ("fp32", "bf16")

    def forward(self, images):
        return self.linear(images.float().mean(dim=(2, 3)).to(self.linear.weight.dtype))


@pytest.fixture
def matrix_units(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.mark.parametrize(("kind", "dtype", "said"), [(Own, torch.float32, True), (Castable, torch.bfloat16, False)])
def test_auto_casts_what_says_that_it_can_be(matrix_units, kind, dtype, said):
    encoder, found, notes, state = cast_encoder(kind(), "own:make", "auto", 32, torch.device("cpu"))
    assert state_digest(state) == weights_digest(encoder)
    assert (found, encoder.linear.weight.dtype, bool(notes)) == (dtype, dtype, said)
    assert encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)
    assert all("own:make runs in fp32: precision is auto" in note for note in notes)


def test_a_format_that_is_asked_for_is_taken(matrix_units):
    assert cast_encoder(Own(), "own:make", "bf16", 32, torch.device("cpu"))[1] is torch.bfloat16
    assert cast_encoder(Castable(), "own:make", "fp32", 32, torch.device("cpu"))[1:3] == (torch.float32, [])


def test_what_leaves_the_range_of_half_precision_is_noticed():
    fits, large = Castable().half(), Castable().half()
    nn.init.constant_(large.linear.weight, 60_000)
    assert hardware._stays_finite(fits, 32, torch.device("cpu"))
    assert not hardware._stays_finite(large, 32, torch.device("cpu"))


def test_an_encoder_of_bands_is_tried_on_values_of_bands():
    encoder = BandCorners(4)
    assert hardware._stays_finite(encoder, 32, torch.device("cpu"), 4)
    with pytest.raises(ValueError, match="uint8"):
        hardware._stays_finite(encoder, 32, torch.device("cpu"))


def test_a_process_that_held_much_before_is_not_charged_for_it():
    held = np.ones(300 * 2**17)  # 300 MiB
    peak = peak_memory()
    assert peak >= held.nbytes
    del held
    forget_peak()
    assert peak_memory() < peak - 250 * 2**20


@pytest.fixture
def worker_of_three(monkeypatch):
    """As in worker 4 of a machine of which a run may use three devices, before CUDA was used."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    monkeypatch.setattr(hardware, "worker_address", lambda: "tls://127.0.0.1:1")
    monkeypatch.setattr(hardware, "worker_number", lambda: 4)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def test_a_worker_sees_its_own_device_alone(worker_of_three, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")), raising=False)
    hardware.see_own_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    hardware.see_own_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_worker_in_which_cuda_has_looked_already_goes_by_number(worker_of_three, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 3, raising=False)
    hardware.see_own_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5,7"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert hardware.pick_device("auto") == torch.device("cuda", 1)


def test_the_process_of_a_run_sees_all_devices(worker_of_three, monkeypatch):
    monkeypatch.setattr(hardware, "worker_address", lambda: "")
    hardware.see_own_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5,7"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_cast_copy_is_what_copying_and_casting_gives(dtype):
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    encoder[2].weight.requires_grad_(requires_grad=False)
    encoder.append(encoder[0])  # shared
    before = weights_digest(encoder)
    found, expected = cast_copy(encoder, dtype), copy.deepcopy(encoder).to(dtype)
    assert weights_digest(found) == weights_digest(expected)
    assert [value.requires_grad for value in found.parameters()] == [value.requires_grad for value in expected.parameters()]
    assert found[3].weight is found[0].weight
    assert not {value.data_ptr() for value in found.state_dict().values()} & {value.data_ptr() for value in encoder.state_dict().values()}
    assert weights_digest(encoder) == before
