"""Our file of a head, which says what the head is, what it was fitted on, and how good it was there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from tilestream.encoders.own_files import key_of, read_own, write_own
from tilestream.errors import ConfigError, InputError
from tilestream.models.heads.bags import AttentionBag, PooledBag, TransformerBag
from tilestream.models.heads.convolutions import ConvolutionHead
from tilestream.models.heads.rows import LinearHead, MLPHead, NearestHead, PrototypeHead
from tilestream.models.heads.token_decoder import TokenDecoder

TASKS = ("classification", "regression", "risk")

MODELS: dict[str, dict[str, type[nn.Module]]] = {
    "classify": {"linear": LinearHead, "mlp": MLPHead, "knn": NearestHead, "prototypes": PrototypeHead},
    "slide": {"linear": LinearHead, "mlp": MLPHead, "pool": PooledBag, "abmil": AttentionBag, "transformer": TransformerBag},
    "segment": {"convolution": ConvolutionHead, "decoder": TokenDecoder},
}
"""The models of each kind of head; those of a slide that are no bags read its vector, and a decoder reads patch tokens."""


@dataclass(frozen=True)
class Fitted:
    """What a head was fitted on: nothing else may be given to it."""

    encoder: str
    """Name of the encoder; of imported embeddings as their file had it."""
    encoder_sha256: str | None
    """Over its weights in `precision`, as a store's recipe has it; None of imported embeddings, whose encoder is known by its name at most."""
    precision: str | None
    """fp32, bf16 or fp16; None of imported embeddings."""
    tile: int
    """Side of a tile, px."""
    mpp: float | None
    """µm/px of a tile; None where its images had no scale."""
    context_sha256: str | None = None
    """Over the settings and weights of the context, where the head reads it."""


@dataclass(frozen=True)
class HeadAbout:
    """What a head file says of its head."""

    kind: str
    """classify, slide or segment."""
    model: str
    """A key of `MODELS[kind]`."""
    input: str
    """tiles, context, vector, pixels or tokens."""
    dim: int
    """Channels of a row, of a token, or of a pixel."""
    outputs: int
    """Logits, values, or 1 for a risk."""
    task: str = "classification"
    """One of `TASKS`."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs, two where one output is the logit of the second; of a regression, names of its values."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model, e.g. hidden."""
    fitted: Fitted | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """How good it was, on what, with how many."""
    notes: str = ""
    """What a person should know of it."""

    def __post_init__(self) -> None:
        if self.kind not in MODELS or self.model not in MODELS[self.kind]:
            known = {kind: list(models) for kind, models in MODELS.items()}
            raise ValueError(f"no model {self.model!r} of kind {self.kind!r} is known; there are {known}")
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        wanted = {self.outputs, 2} if self.task == "classification" and self.outputs == 1 else {self.outputs}
        if self.task == "classification" and len(self.classes) not in wanted - {1}:
            raise ValueError(f"{len(self.classes)} names of classes for {self.outputs} outputs")


def build_model(about: HeadAbout) -> nn.Module:
    """The module that a file describes, its weights those of a seed.

    Raises
    ------
    ConfigError
        Its arguments are not those of the model.
    """
    try:
        return MODELS[about.kind][about.model](about.dim, about.outputs, **about.arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a head of model {about.model} cannot be built with {about.arguments} ({error}).") from error


def write_head(path: str | os.PathLike[str], module: nn.Module, about: HeadAbout) -> None:
    """Write a head; the same head gives the same bytes.

    Parameters
    ----------
    path : path
        `.safetensors`; a file that is there is replaced.
    module : nn.Module
        As `build_model(about)` makes it, with the weights to be kept.
    about : HeadAbout
        What its header says.
    """
    write_own(path, "head", about, {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()})


def read_about(path: str | os.PathLike[str]) -> HeadAbout | None:
    """`read_own` of a head."""
    return read_own(path, "head", HeadAbout, Fitted)


def read_head(path: str | os.PathLike[str]) -> tuple[nn.Module, HeadAbout]:
    """A head with its weights, ready for inference.

    Raises
    ------
    InputError
        The file cannot be read, or is no head of ours.
    """
    about = read_about(path)
    if about is None:
        raise InputError(f"{path}: is no head of tilestream: its header lacks {key_of('head')!r}. Give one that `tilestream fit` wrote.")
    module = build_model(about)
    with safe_open(path, framework="pt", device="cpu") as file:
        state: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    own = module.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(key for key in own if own[key].shape != state[key].shape)
    if wrong:
        raise InputError(
            f"{path}: its tensors are not those of a {about.model} head of {about.dim} channels: {', '.join(wrong[:4])}. Fit it again."
        )
    module.load_state_dict(state)
    return module.eval().requires_grad_(requires_grad=False), about
