"""The behaviour that every head has that a `module:factory` makes, whatever it answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tilestream.stages.heads.facts import asks_for_positions


class HeadSuite:
    """What heads of kind classify and slide keep: inherit it and give the fixture `head`.

    Attributes
    ----------
    kind : str
        classify or slide.
    dim : int
        Channels of the rows that it is tried with, where it reads rows; the head's own `dim` goes before it.
    side : int or None
        Side of the patches that it is tried with, px, where it reads pixels; the head's own `size` goes before it.
    tolerance : float
        Largest difference of an answer between batches of other sizes, relative to the largest.
    """

    kind: str = "classify"
    dim: int = 16
    side: int | None = None
    tolerance: float = 1e-5

    @pytest.fixture(scope="class")
    @classmethod
    def head(cls) -> nn.Module:
        """The module under test."""
        pytest.fail("a suite of a head has a fixture `head`")

    def given(self, head: nn.Module, count: int = 5) -> Tensor:
        """(count, dim) float32, or (count, 3, side, side) uint8 of noise, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        if self.side is None:
            return torch.randn(count, int(getattr(head, "dim", None) or self.dim), generator=generator)
        side = int(getattr(head, "size", None) or self.side)
        return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)

    def told(self, head: nn.Module, given: Tensor) -> Any:
        """What a head gives, told where its rows lie if it asks for that."""
        if self.kind == "slide" and asks_for_positions(head):
            return head(given, positions=torch.arange(2.0 * len(given)).reshape(-1, 2))
        return head(given)

    def answer(self, head: nn.Module, given: Tensor) -> Tensor:
        """(n, outputs), or (outputs,) of a head of slides."""
        out = self.told(head, given)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    @torch.inference_mode()
    def test_answers_are_finite_numbers_one_for_each_class(self, head: nn.Module) -> None:
        """(n, outputs) of classify, (outputs,) of slide; a single output is the logit of the second of two classes."""
        given = self.given(head)
        out = self.answer(head, given)
        assert out.is_floating_point()
        assert torch.isfinite(out).all()
        assert out.shape[:-1] == ((5,) if self.kind == "classify" else ())
        regression = bool(getattr(head, "regression", False)) or getattr(head, "task", "classification") != "classification"
        assert regression or len(getattr(head, "classes", ())) in (0, max(2, out.shape[-1]))

    @torch.inference_mode()
    def test_an_answer_does_not_depend_on_its_batch(self, head: nn.Module) -> None:
        """Statistics of a batch, or dropout left on, would show here; the answer of a slide may depend on all of its tiles."""
        if self.kind == "slide":
            return
        given = self.given(head)
        whole, alone = self.answer(head, given), torch.cat([self.answer(head, each[None]) for each in given])
        assert float((whole - alone).abs().max()) <= self.tolerance * max(1.0, float(whole.abs().max()))

    @torch.inference_mode()
    def test_attention_is_one_logit_a_tile(self, head: nn.Module) -> None:
        """Where a head of slides gives any."""
        out = self.told(head, self.given(head))
        assert not isinstance(out, tuple) or out[1].numel() == 5

    @torch.inference_mode()
    def test_the_same_rows_give_the_same_bytes(self, head: nn.Module) -> None:
        """Nothing random is left on."""
        given = self.given(head)
        assert torch.equal(self.answer(head, given), self.answer(head, given))

    def test_it_is_ready_for_inference(self, head: nn.Module) -> None:
        """In eval mode; gradients are switched off where it is loaded."""
        assert not head.eval().training
