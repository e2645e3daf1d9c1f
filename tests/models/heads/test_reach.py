"""What is measured of a dense model: its stride, its period and how far it sees, against arithmetic on its layers."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.dense_models import Dense, SqueezeExcite, dilated_net, strided_net
from tilestream.models.heads.reach import measure_reach


@pytest.mark.parametrize("radius", [20, 47])
def test_a_dilated_net_reaches_as_far_as_its_kernels(radius: int) -> None:
    found = measure_reach(dilated_net(radius), 4 * radius)
    assert (found.channels, found.stride, found.period, found.margin) == (4, 1, 1, radius)


@pytest.mark.parametrize("field", [41, 95])
def test_the_reach_of_a_strided_net_is_a_multiple_of_its_stride(field: int) -> None:
    found = measure_reach(strided_net(field), 256)
    assert (found.stride, found.period) == (4, 4)
    # An output pixel is the middle of its field; its cell of 4 px reaches 4 px less to one side.
    assert found.margin is not None
    assert field // 2 - 4 <= found.margin <= field // 2 + 4
    assert found.margin % 4 == 0


def test_a_net_that_insists_on_whole_numbers_is_measured_by_what_changes() -> None:
    class Strict(Dense):
        def forward(self, pixels: Tensor) -> Tensor:
            if pixels.dtype != torch.uint8:
                raise TypeError("uint8, please")
            return super().forward(pixels)

    found = measure_reach(Strict(dilated_net(7).layers).eval(), 64)
    assert found.margin == 7


def test_a_global_operation_has_no_margin() -> None:
    assert measure_reach(SqueezeExcite().eval(), 64).margin is None
    instance = Dense(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4))).eval()
    assert measure_reach(instance, 64).margin is None


def test_a_reach_beyond_a_quarter_of_the_patch_is_none() -> None:
    assert measure_reach(dilated_net(20), 64).margin is None


def test_what_is_not_in_inference_mode_is_refused() -> None:
    batch = Dense(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False))).eval()
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        measure_reach(batch, 64)
    dropping = Dense(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout2d(0.5)))
    with pytest.raises(ValueError, match="dropout is left on"):
        measure_reach(dropping, 64)


def test_what_is_no_image_is_refused() -> None:
    flat = Dense(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()
    with pytest.raises(ValueError, match=r"gave \(2, 4\)"):
        measure_reach(flat, 64)
    cut = Dense(nn.Sequential(nn.Conv2d(3, 4, 3))).eval()
    with pytest.raises(ValueError, match="whole part"):
        measure_reach(cut, 64)
