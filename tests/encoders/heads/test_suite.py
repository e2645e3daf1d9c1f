"""Heads of ours and of tests keep what the suite for authors of heads asks; one that does not is found out."""

import pytest
import torch
from torch import nn

from tests.support.heads import Redness, WholeBag
from tilestream.models.heads.rows import LinearHead, MLPHead, PrototypeHead
from tilestream.testing import HeadSuite


class TestLinear(HeadSuite):
    @pytest.fixture(scope="class", params=[LinearHead, MLPHead, PrototypeHead])
    @classmethod
    def head(cls, request):
        made = request.param(9, 3)
        for value in made.buffers():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        return made


class TestPixels(HeadSuite):
    side = 32

    @pytest.fixture(scope="class")
    @classmethod
    def head(cls):
        return Redness().eval()


class TestSlides(HeadSuite):
    kind = "slide"

    @pytest.fixture(scope="class")
    @classmethod
    def head(cls):
        return WholeBag().eval()


def test_a_head_that_looks_at_its_batch_is_found_out():
    class Batchy(nn.Module):
        def forward(self, x):
            return x[:, :2] - x[:, :2].mean(dim=0)

    with pytest.raises(AssertionError):
        HeadSuite().test_an_answer_does_not_depend_on_its_batch(Batchy())
