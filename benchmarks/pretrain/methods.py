"""Methods: what student and teacher hold, and the loss of one batch of views."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.pretrain import losses
from benchmarks.pretrain.network import Backbone, PrototypeHead, build_expander, build_predictor
from tilestream.models.vit import VisionTransformer


@dataclass(frozen=True)
class Batch:
    """Views of n samples, view by view."""

    global_views: Tensor
    """(g * n, 3, px, px) normalised pixels."""
    local_views: Tensor | None
    """(l * n, 3, px, px) normalised pixels."""
    mask: Tensor
    """(g * n, patches) bool; the patches hidden from a student that learns to fill them in, in every second view of a sample."""
    masked_rows: Tensor
    """(m,) int64; the global views that have hidden patches."""
    masked_index: Tensor
    """(m, hidden) int64; the hidden patches of those."""
    samples: int
    """n."""


@dataclass(frozen=True)
class MethodConfig:
    """Numbers of the losses."""

    width: int = 2048
    """Channels of the heads' hidden layers, and of VICReg's embeddings."""
    invariance: float = 25.0
    """Weight (VICReg, arXiv:2105.04906)."""
    variance: float = 25.0
    """Weight."""
    covariance: float = 1.0
    """Weight."""
    patch: float = 5.0
    """Weight of the loss on hidden patches beside VICReg's."""
    prototypes: int = 4096
    """Of each head of DINO and iBOT."""
    bottleneck: int = 256
    """Channels of their unit vectors."""
    student_temperature: float = 0.1
    """Of the student's softmax."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """Of the teacher's, first and from `teacher_warmup` on."""
    teacher_warmup: float = 0.3
    """Part of the run over which the teacher's temperature rises."""
    prototypes_frozen: float = 0.03
    """Part of the run at the start in which the prototypes stay as drawn."""
    koleo: float = 0.1
    """Weight."""


class Method(nn.Module):
    """A student that is trained and its moving average, the teacher; both hold a `backbone`, and the student its heads.

    Parameters
    ----------
    vit : VisionTransformer
        Trained in place.
    sides : tuple of int
        Patches along the sides of the views.
    config : MethodConfig
    """

    masks = False
    """Whether patches are hidden from the student."""

    def __init__(self, vit: VisionTransformer, sides: tuple[int, ...], config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.student = nn.ModuleDict({"backbone": Backbone(vit, sides), **self.build_heads(vit.config.dim)})
        kept = {key: copy.deepcopy(self.student[key]) for key in self.kept_by_teacher()}
        self.teacher = nn.ModuleDict(kept).requires_grad_(requires_grad=False)

    def build_heads(self, dim: int) -> dict[str, nn.Module]:
        raise NotImplementedError

    def kept_by_teacher(self) -> tuple[str, ...]:
        """Parts of the student that the teacher has a moving average of."""
        return ("backbone",)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and numbers to log; `progress` is the part of the run that is over."""
        raise NotImplementedError

    def before_update(self, progress: float) -> None:
        """Look at the gradients before the optimiser does."""

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student by 1 - momentum."""
        for key, part in self.teacher.items():
            ours, theirs = list(part.parameters()), list(self.student[key].parameters())
            torch._foreach_lerp_(ours, theirs, 1 - momentum)

    def student_views(self, batch: Batch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Class tokens and patches of the global views, then of the local ones."""
        class_g, patches_g = self.student["backbone"](batch.global_views, mask)
        class_l, patches_l = self.student["backbone"](batch.local_views) if batch.local_views is not None else (None, None)
        return class_g, patches_g, class_l, patches_l


def _by_view(embeddings: Tensor | None, samples: int) -> Tensor | None:
    """(v * n, d) to (v, n, d) float32."""
    return None if embeddings is None else embeddings.float().unflatten(0, (-1, samples))


def _hidden_tokens(patches: Tensor, batch: Batch) -> Tensor:
    """(g * n, patches, d) to (m * hidden, d), the tokens of the hidden patches."""
    rows = patches[batch.masked_rows]
    index = batch.masked_index[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, index).flatten(0, 1)


class Vicreg(Method):
    """VICReg (Bardes, Ponce and LeCun 2022, arXiv:2105.04906) on global and local views.

    The class token and the mean of the patch tokens each have an expander and the full loss, so that either is a good output.
    """

    def build_heads(self, dim: int) -> dict[str, nn.Module]:
        return {"class_head": build_expander(dim, self.config.width), "mean_head": build_expander(dim, self.config.width)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.student_views(batch, batch.mask if self.masks else None)
        return self._global_loss(batch, *views)

    def _global_loss(
        self, batch: Batch, class_g: Tensor, patches_g: Tensor, class_l: Tensor | None, patches_l: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        locals_too = class_l is not None and patches_l is not None
        terms = []
        for key, of_global, of_local in (
            ("class_head", class_g, class_l),
            ("mean_head", patches_g.mean(dim=1), patches_l.mean(dim=1) if locals_too else None),
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
            first, second = _by_view(of_global, samples), _by_view(of_local, samples)
            every = first if second is None else torch.cat([first, second])
            return torch.stack([losses.invariance_loss(first, second), losses.variance_loss(every), losses.covariance_loss(every)])


class VicregPatch(Vicreg):
    """VICReg, and beside it hidden patches whose tokens are predicted as the teacher has them (data2vec, Baevski et al. 2022, arXiv:2202.03555)."""

    masks = True

    def build_heads(self, dim: int) -> dict[str, nn.Module]:
        return {**super().build_heads(dim), "predictor": build_predictor(dim)}

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.student_views(batch, batch.mask)
        total, logged = self._global_loss(batch, *views)
        with torch.no_grad():
            _, told = self.teacher["backbone"](batch.global_views[batch.masked_rows])
            told = told.gather(1, batch.masked_index[..., None].expand(-1, -1, told.shape[-1])).flatten(0, 1)
        patch = losses.patch_loss(self.student["predictor"](_hidden_tokens(views[1], batch)), told)
        return total + self.config.patch * patch, {**logged, "patch": patch}


class Dino(Method):
    """DINO's loss on class tokens, iBOT's on hidden patches, KoLeo's on neighbours, with Sinkhorn targets.

    As DINOv2 puts them together (Oquab et al. 2023, arXiv:2304.07193, section 4): DINO (arXiv:2104.14294), iBOT (Zhou et al. 2022,
    arXiv:2111.07832), KoLeo (arXiv:1806.03198).
    """

    masks = True

    def build_heads(self, dim: int) -> dict[str, nn.Module]:
        config = self.config
        return {key: PrototypeHead(dim, config.width, config.bottleneck, config.prototypes) for key in ("class_head", "patch_head")}

    def kept_by_teacher(self) -> tuple[str, ...]:
        return ("backbone", "class_head", "patch_head")

    def teacher_temperature(self, progress: float) -> float:
        """Rises linearly over the warm-up."""
        first, last = self.config.teacher_temperature
        return first + (last - first) * min(progress / self.config.teacher_warmup, 1)

    def before_update(self, progress: float) -> None:
        if progress < self.config.prototypes_frozen:
            for key in ("class_head", "patch_head"):
                self.student[key].prototypes.grad = None

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        temperature, samples = self.teacher_temperature(progress), batch.samples
        with torch.no_grad():
            told_class, told_patches = self.teacher["backbone"](batch.global_views)
            targets = losses.sinkhorn_targets(self.teacher["class_head"](told_class) / temperature)
            hidden = losses.sinkhorn_targets(self.teacher["patch_head"](_hidden_tokens(told_patches, batch)) / temperature)
        class_g, patches_g, class_l, _ = self.student_views(batch, batch.mask)
        head, student_temperature = self.student["class_head"], self.config.student_temperature
        local_cosines = None if class_l is None else _by_view(head(class_l), samples)
        dino = losses.distillation_loss(
            _by_view(head(class_g), samples), local_cosines, targets.unflatten(0, (-1, samples)), student_temperature
        )
        ibot = losses.cross_entropy(self.student["patch_head"](_hidden_tokens(patches_g, batch)), hidden, student_temperature)
        with torch.autocast(class_g.device.type, enabled=False):
            koleo = torch.stack([losses.koleo_loss(view) for view in class_g.unflatten(0, (-1, samples))]).mean()
        logged = {
            "dino": dino, "ibot": ibot, "koleo": koleo,
            "entropy": losses.mean_entropy(targets), "patch_entropy": losses.mean_entropy(hidden), "spread": losses.token_spread(told_class),
        }  # fmt: skip
        return dino + ibot + self.config.koleo * koleo, logged


METHODS: dict[str, Callable[[VisionTransformer, tuple[int, ...], MethodConfig], Method]] = {
    "vicreg": Vicreg,
    "vicreg+patch": VicregPatch,
    "dino": Dino,
}


def cosine_between(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` at progress 0 to `last` at 1."""
    return last + (first - last) * (1 + math.cos(math.pi * min(max(progress, 0), 1))) / 2
