"""The config of `fit`: embeddings, what is to be learned from them, by which head, and how it is judged."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tilestream.config.types import (
    Arguments,
    Bytes,
    Count,
    Device,
    Fraction,
    Index,
    LocalPath,
    Names,
    Paths,
    Section,
    Switch,
    Text,
    ValueRefusedError,
    composed,
    yaml_word,
)

TILE_MODELS = ("linear", "mlp", "knn", "prototypes", "kmeans")
SLIDE_MODELS = ("mean", "max", "abmil", "transformer")
SHARED_MODELS = ("abmil", "transformer")

Folds = Annotated[int, Field(strict=True, ge=2, le=1000)]
HeadName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Survival(Section):
    """Columns of a table in which patients were followed."""

    section: ClassVar[str] = "target.survival."

    time: Text
    """Column of the time until death or the last look, in any one unit."""
    event: Text
    """Column that says whether the patient died (1, true, yes, dead) or was only seen last (0, false, no, alive)."""


class Masked(Section):
    """A context that learns, without labels, to tell hidden tokens from their surroundings."""

    section: ClassVar[str] = "target.masked."

    window: Count = 8
    """Side of a window, in tokens."""
    depth: Count = 3
    """Number of layers."""
    width: Count = 192
    """Numbers of a token between the layers."""
    heads: Count = 6
    """Attention heads; they divide the width."""
    shift: Switch = True
    """Whether every other layer shifts its windows by half a window."""
    position: Literal["sincos", "learned", "rope", "bias", "log_bias", "none"] = "bias"
    """How a token's place enters, as in `context.position`."""
    hidden: Annotated[float, Field(strict=True, ge=0.05, le=0.9)] = 0.3
    """Part of the tokens that is hidden at once."""
    passes: Count | None = None
    """Times that each token is learned from; by default as often as makes 3 million tokens, at least 3 and at most 100 times."""
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=0.1)] = 1e-3
    """The highest; it rises over the first twentieth of the steps and falls to nothing."""


class Target(Section):
    """What is to be learned: exactly one of `slides`, `annotations`, `obs`, `clusters` and `masked`; with `masked`, annotations only judge."""

    section: ClassVar[str] = "target."

    slides: LocalPath | None = None
    """CSV, TSV or XLSX with a row for each slide (column slide, slide_id or filename) or each patient (patient, patient_id or case_id)."""
    column: Text | None = None
    """Column of `slides` that is learned."""
    columns: Names = ()
    """In place of a column: several, of each of which a head is made; `save` then has {column} in its name."""
    shared: Switch = False
    """Whether the heads of `columns` share all layers but the last, which then learn from the labels of all columns at once: for abmil and transformer."""
    survival: Survival | None = None
    """In place of a column: `{time: months, event: died}`."""
    regression: bool = False
    """Whether the column holds numbers to be predicted, not classes."""
    slide_table: LocalPath | None = None
    """Table of patients and their slides, where `slides` has patients only and the list of slides had no column of them, as STAMP keeps it."""
    annotations: LocalPath | None = None
    """Drawn regions with classes for each slide: a folder with `<slide id>.geojson`, or a pattern such as `annotations/{slide}.geojson`."""
    min_fraction: Fraction = 0.5
    """Part of a tile that one class must cover for the tile to have it; tiles of which no class covers as much are left out."""
    classes: Names = ()
    """Classes in the order wanted, others are left out; by default all that there are, sorted."""
    obs: Text | None = None
    """Column of the list of slides (as patient or diagnosis), whose value all tiles of a slide have; or the name of a classify head."""
    masked: Masked | None = None
    """No labels: a context by masked tokens, for `context.weights` of a run. `{}` takes the defaults. With `annotations` beside it, their classes are
    told from tiles with and without it, and it is said how it treats their borders; it learns nothing from them."""

    clusters: Annotated[int, Field(strict=True, ge=2, le=200)] | None = None
    """No labels: so many clusters of the tiles of all slides, by the model kmeans."""

    @field_validator("classes")
    @classmethod
    def _composed(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(composed, classes))

    @model_validator(mode="after")
    def _one_kind(self) -> Target:
        given = [key for key in ("slides", "annotations", "obs", "clusters", "masked") if getattr(self, key) is not None]
        if len(given) != 1 and given != ["annotations", "masked"]:
            raise ValueRefusedError(
                f"{' and '.join(given) if given else 'nothing'} given, but it takes one of slides (a table of labels), annotations "
                "(drawn regions), obs (what tiles have already), clusters (no labels), masked (a context)"
            )
        learned = [key for key in ("column", "columns", "survival") if getattr(self, key)]
        if len(learned) != (given[0] == "slides"):
            raise ValueRefusedError(
                f"{' and '.join(learned) or 'no column, columns or survival'} given, but slides takes one of column, columns and survival, and {given[0]} "
                f"{'takes that' if given[0] == 'slides' else 'takes none of them'}"
            )
        return self


class Head(Section):
    """What is trained."""

    section: ClassVar[str] = "head."

    name: HeadName
    """What outputs call it: lower-case letters, digits and _."""
    kind: Literal["classify", "slide"]
    """A prediction for each tile, or one for each slide."""
    model: Literal["linear", "mlp", "knn", "prototypes", "kmeans", "mean", "max", "abmil", "transformer"]
    """Of tiles: linear (logistic regression), mlp, knn, prototypes (few examples), kmeans (no labels). Of slides: mean or max (of the tiles, then linear), abmil (gated
    attention), transformer."""
    input: Literal["tiles", "context"] = "tiles"
    """Which stored vectors it reads."""
    args: Arguments = Field(default_factory=dict)
    """Settings of the model, such as `hidden: 128`, `k: 20`, `epochs: 32`."""

    @field_validator("model")
    @classmethod
    def _of_its_kind(cls, model: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        wanted = {"classify": TILE_MODELS, "slide": SLIDE_MODELS}.get(str(kind), (model,))
        if model not in wanted:
            raise ValueRefusedError(f"{model}, but a head of kind {kind} is one of {', '.join(wanted)}")
        return model


NO_HEAD = Head.model_construct(name="", kind="classify", model="linear", input="tiles", args={})
"""Where no head is trained."""


class Split(Section):
    """What is held out. All slides of a patient are, where there is a column of patients; else slides."""

    section: ClassVar[str] = "split."

    folds: Folds = 5
    """Parts of which each is predicted once, by a head that was trained on the others."""
    seed: Index = 0
    """Where drawing begins."""
    column: Text | None = None
    """Column of `target.slides` with the fold of each row, in place of folds that are drawn."""
    patient: Text | None = None
    """Column of patients, of `target.slides` or of the list of slides; by default patient, patient_id or case_id."""
    site: Text | None = None
    """Column of sites: then all patients of a site are held out together."""
    held_out: Names = ()
    """With `target.masked`, the slides that are held out, by name or pattern, in place of a part that is drawn."""


class FitConfig(Section):
    """Everything that `fit` is told."""

    embeddings: Paths
    """Outputs of `run`, one or several."""
    target: Target
    """What is to be learned."""
    head: Annotated[Head, Field(validate_default=True)] = NO_HEAD
    """What is trained; left out with `target.masked`."""
    split: Split = Split()
    """What is held out."""
    save: LocalPath
    """File of the head or context, `.safetensors`. Its report, metrics and predictions lie beside it under the same name."""
    device: Device = "auto"
    """Where heads of several layers are trained: auto (the first CUDA device where there is one), cpu, cuda, or cuda:N."""
    memory_limit: Bytes = 2 * 2**30
    """Memory for the vectors of tiles that are learned from, in bytes; of more tiles, as many as fit are drawn, evenly over slides and classes."""

    @field_validator("save")
    @classmethod
    def _a_head_file(cls, save: str) -> str:
        if not save.endswith(".safetensors"):
            raise ValueRefusedError(f"{yaml_word(save)}, but it must end in .safetensors, e.g. heads/tumour.safetensors")
        return save

    @model_validator(mode="after")
    def _a_file_each(self) -> FitConfig:
        if bool(self.target.columns) != ("{column}" in self.save):
            raise ValueRefusedError(
                f"save: {yaml_word(self.save)}, but "
                + (
                    "with target.columns it must hold {column}, e.g. heads/{column}.safetensors"
                    if self.target.columns
                    else "{column} needs target.columns"
                )
            )
        return self

    @field_validator("head")
    @classmethod
    def _fits_target(cls, head: Head, info: ValidationInfo) -> Head:
        target = info.data.get("target")
        if target is None:
            return head
        if target.masked is not None and head.name:
            raise ValueRefusedError(f"{head.name}, but target.masked trains a context and no head. Leave it out")
        if target.masked is None and not head.name:
            raise ValueRefusedError("missing; it says what is trained, e.g. {name: tumour, kind: classify, model: linear}")
        if (head.model == "kmeans") != (target.clusters is not None):
            raise ValueRefusedError(
                f"model is {head.model}, and target.clusters {'is not given' if target.clusters is None else f'is {target.clusters}'}, but kmeans and clusters go together"
            )
        if head.kind == "slide" and target.annotations is not None:
            raise ValueRefusedError("kind is slide, but target.annotations says what tiles are. Make it classify")
        if target.shared and not (target.columns and head.model in SHARED_MODELS):
            raise ValueRefusedError(
                f"model is {head.model}, and target.shared is true, but only the layers of {' and '.join(SHARED_MODELS)} are shared, between the heads "
                "of target.columns. Choose one of them and give columns, or leave shared out"
            )
        if head.kind == "classify" and (target.regression or target.survival is not None):
            raise ValueRefusedError("kind is classify, but numbers and survival are predicted of slides. Make it slide")
        return head
