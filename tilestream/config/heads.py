"""The section `heads` of a config: answers that are made of what a run embeds, each under a name of its own."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from tilestream.config.restart import NAME
from tilestream.config.types import Count, Index, LocalPath, Names, Positive, Section, ValueRefusedError, yaml_word

TAKEN = frozenset({"row", "col", "y", "x", "tissue", "status", "slide", "spatial", "context", "attention", "tokens"})
"""Columns of the tables that are there already."""

NO_ENCODER = "none"
"""Name of the encoder that there is not."""

INPUTS = {
    "classify": ("tiles", "context", "pixels"),
    "slide": ("tiles", "context", "vector"),
    "detect": ("pixels",),
    "segment": ("pixels", "tokens", "context"),
}
"""What each kind of head can be made of, the default first."""

SAVES: dict[str, tuple[str, ...]] = {
    "classify": ("probabilities",), "slide": ("attention",), "detect": ("shapes",), "segment": ("labels", "probabilities"),
}  # fmt: skip
"""What each kind of head can store beside its answers."""

SAVED = {**SAVES, "segment": ("labels",)}
"""The same where a config does not say."""

Kind = Literal["classify", "slide", "detect", "segment"]
Input = Literal["tiles", "context", "tokens", "pixels", "vector"]


class Head(Section):
    """One head: what it answers, what it reads, and where its weights are."""

    section: ClassVar[str] = "heads.*."

    kind: Kind
    """classify: a class and probabilities of each tile; slide: an answer for the whole slide, with the share that each tile has in it;
    detect: the objects in the pixels, each once; segment: a class of each pixel, as a label image."""
    input: Input = Field(default=None, validate_default=True)
    """What it reads: tiles (their embeddings), context (the same behind the context), pixels; a head of kind slide also vector, the pooled one. The default is
    tiles. A head of kind segment reads pixels, or patch tokens: tokens, or context for the same behind the context; those that output.save keeps, else as they
    come from the encoder."""
    model: LocalPath
    """A `.safetensors` of `tilestream fit`; a folder or repository of the hub with config.json and safetensors (timm, transformers, WSInfer); an `.onnx`
    file; `module:factory`; `instanseg:FILE.pt`, a TorchScript program of InstanSeg, which runs code of whoever made it; or one of those in the package: tilestream-sample-tissue, tilestream-sample-blood, tilestream-sample-segment."""
    classes: Names = ()
    """Names of the classes, where the model does not say."""
    mpp: Positive | None = None
    """Resolution at which pixels are read, in µm/px; that of the tiles where it is not given."""
    size: Count | None = None
    """Side of a patch of pixels, in px; that of the tiles where neither this nor the model says."""
    overlap: Index | None = None
    """How far neighbouring patches overlap, in px, where the model does not say."""
    blend: Literal["hann", "cosine", "crop"] | None = None
    """How neighbouring patches of a head of kind segment meet: by ramps that add up to one, or each with its own middle alone. The default is crop where the
    overlap holds all that the model sees, for then it equals one pass, else hann."""
    save: Names = Field(default=None, validate_default=True)
    """What is stored beside the answers: of classify probabilities, of slide attention, of detect shapes, of segment labels, and probabilities of all classes too."""

    @property
    def reads_tokens(self) -> bool:
        """Whether it is made of patch tokens, which pass by once where they are not kept."""
        return self.kind == "segment" and self.input != "pixels"

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, given: object, info: ValidationInfo) -> object:
        kind = info.data.get("kind")
        if kind is None:
            return given or "tiles"
        if given is not None and given not in INPUTS[kind]:
            raise ValueRefusedError(f"{yaml_word(given)}, but a head of kind {kind} reads one of {', '.join(INPUTS[kind])}")
        return given or INPUTS[kind][0]

    @field_validator("mpp", "size", "overlap")
    @classmethod
    def _check_pixels(cls, given: float | None, info: ValidationInfo) -> float | None:
        read = info.data.get("input", "pixels")
        if given is not None and read != "pixels":
            raise ValueRefusedError(f"{given:g}, but the head reads {read}, which have no pixels. Leave it out, or set input to pixels")
        return given

    @field_validator("blend")
    @classmethod
    def _check_blend(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is not None and (info.data.get("kind"), info.data.get("input")) != ("segment", "pixels"):
            raise ValueRefusedError(f"{given}, but only heads of kind segment that read pixels have patches that meet. Leave it out")
        return given

    @field_validator("save", mode="before")
    @classmethod
    def _check_save(cls, given: object, info: ValidationInfo) -> object:
        kind = info.data.get("kind")
        known = SAVES.get(kind or "", ())
        asked = SAVED.get(kind or "", ()) if given is None else (given,) if isinstance(given, str) else given
        unknown = [part for part in asked if part not in known] if isinstance(asked, tuple | list) and kind else []
        if unknown:
            raise ValueRefusedError(f"{yaml_word(unknown[0])}, but a head of kind {kind} stores {', '.join(known)}")
        return asked

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in classes if classes.count(name) > 1), None)
        if twice is not None:
            raise ValueRefusedError(f"{twice} stands there twice. Give each class a name of its own")
        return classes


def _check_names(heads: dict[str, Head]) -> dict[str, Head]:
    for name in heads:
        if not re.fullmatch(NAME, name):
            raise ValueRefusedError(f"{yaml_word(name)} is no name of a head; it begins with a-z, and a-z, 0-9 and _ follow")
        if name in TAKEN:
            raise ValueRefusedError(f"{name} is a column that every store has. Give the head another name")
        if name.removesuffix("_attention") in heads and name.endswith("_attention"):
            raise ValueRefusedError(
                f"{name} is where head {name.removesuffix('_attention')} keeps its attention. Give the head another name"
            )
    return heads


Heads = Annotated[dict[str, Head], AfterValidator(_check_names)]


def problem_of_heads(heads: dict[str, Head], *, context: bool, encoder: bool, vector: bool) -> str | None:
    """Why heads cannot have what they read, in words behind `heads`; None where they can: whether there is each of the others is told."""
    for name, head in heads.items():
        if head.input == "context" and not context:
            return f"{name} reads context, but there is none. Add a context, or set heads.{name}.input to tiles"
        if head.input == "vector" and not vector:
            return f"{name} reads the vector of the slide, but none is made. Choose a pool and leave slide in output.save, or set heads.{name}.input to tiles"
        if head.input != "pixels" and not encoder:
            return f"{name} reads {head.input}, but there is no encoder. Write one, or set heads.{name}.input to pixels"
    return None
