"""What is learned: student and teacher, and the loss of one batch of views."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.pretrain import losses
from benchmarks.pretrain.network import Backbone, build_expander
from tilestream.models.vit import VisionTransformer


@dataclass(frozen=True)
class Batch:
    """Views of n samples, view by view."""

    global_views: Tensor
    """(g * n, 3, px, px) normalised pixels."""
    local_views: Tensor | None
    """(l * n, 3, px, px) normalised pixels."""
    samples: int
    """n."""


@dataclass(frozen=True)
class MethodConfig:
    """Numbers of the loss."""

    width: int = 2048
    """Channels of the heads' hidden layers, and of the embeddings."""
    invariance: float = 25.0
    """Weight (VICReg, arXiv:2105.04906)."""
    variance: float = 25.0
    """Weight."""
    covariance: float = 1.0
    """Weight."""


class Vicreg(nn.Module):
    """VICReg (Bardes, Ponce and LeCun 2022, arXiv:2105.04906) on global and local views: a student that is trained, and its moving average, the teacher.

    The class token and the mean of the patch tokens each have an expander and the full loss, so that either is a good output.

    Parameters
    ----------
    vit : VisionTransformer
        Trained in place.
    sides : tuple of int
        Patches along the sides of the views.
    config : MethodConfig
    """

    def __init__(self, vit: VisionTransformer, sides: tuple[int, ...], config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        heads = {key: build_expander(vit.config.dim, config.width) for key in ("class_head", "mean_head")}
        self.student = nn.ModuleDict({"backbone": Backbone(vit, sides), **heads})
        self.teacher = nn.ModuleDict({"backbone": copy.deepcopy(self.student["backbone"])}).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student by 1 - momentum."""
        ours, theirs = (list(part["backbone"].parameters()) for part in (self.teacher, self.student))
        torch._foreach_lerp_(ours, theirs, 1 - momentum)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and numbers to log."""
        class_g, patches_g = self.student["backbone"](batch.global_views)
        class_l, patches_l = self.student["backbone"](batch.local_views) if batch.local_views is not None else (None, None)
        terms = []
        for key, of_global, of_local in (
            ("class_head", class_g, class_l),
            ("mean_head", patches_g.mean(dim=1), None if patches_l is None else patches_l.mean(dim=1)),
        ):
            head = self.student[key]
            terms.append(self._terms(head(of_global), None if of_local is None else head(of_local), batch.samples))
        invariance, variance, covariance = torch.stack(terms).mean(dim=0)
        config = self.config
        total = config.invariance * invariance + config.variance * variance + config.covariance * covariance
        logged = {"invariance": invariance, "variance": variance, "covariance": covariance, "spread": losses.token_spread(class_g)}
        return total, logged

    def _terms(self, of_global: Tensor, of_local: Tensor | None, samples: int) -> Tensor:
        """(3,): invariance, variance and covariance."""
        with torch.autocast(of_global.device.type, enabled=False):
            first, second = _by_view(of_global, samples), None if of_local is None else _by_view(of_local, samples)
            every = first if second is None else torch.cat([first, second])
            return torch.stack([losses.invariance_loss(first, second), losses.variance_loss(every), losses.covariance_loss(every)])


def _by_view(embeddings: Tensor, samples: int) -> Tensor:
    """(v * n, d) to (v, n, d) float32."""
    return embeddings.float().unflatten(0, (-1, samples))


def cosine_between(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` at progress 0 to `last` at 1."""
    return last + (first - last) * (1 + math.cos(math.pi * min(max(progress, 0), 1))) / 2
