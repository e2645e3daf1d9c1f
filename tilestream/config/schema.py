"""The config of a run: its sections, their keys, defaults and units. Frozen, and checked when it is made.

Shorthands are written out on the way in (`encoder: patch_embed` becomes an `Encoder`), so that nothing behind this module
meets two forms of one thing. Null for a key means that the key is absent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tilestream.config.bands.source import SourceChoices
from tilestream.config.compute import Compute, OnError, SchedulerSpec
from tilestream.config.heads import NO_ENCODER, Head, Heads, problem_of_heads
from tilestream.config.python_objects import is_object_name, name_object, told_elsewhere
from tilestream.config.types import (
    Arguments,
    Count,
    Fraction,
    Index,
    Kept,
    LocalPath,
    Paths,
    PathText,
    Positive,
    Saved,
    Section,
    Sides,
    Switch,
    Text,
    Tissue,
    ValueRefusedError,
    yaml_word,
)
from tilestream.config.vectors.pool import Pool

__all__ = [
    "Compute", "Config", "Context", "Encoder", "OnError", "Output", "Pool", "SchedulerSpec", "SourceChoices", "Tiles", "Tissue", "Windows",
]  # fmt: skip


UNSTATED = {"tiles.tissue.ground": "auto"}
"""Settings that recipes leave out while they have this value, as stores had none of them before there were such settings."""


class Output(Section):
    """Where results go, and which."""

    section: ClassVar[str] = "output."

    path: PathText
    """Folder, or URL in an object store such as `s3://bucket/embeddings`. Relative to the working directory."""
    save: Saved = ("tiles", "slide")
    """What is stored: vectors of tiles, of the slide, of windows of the context, of single tokens."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number format of the stored vectors."""

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """`output: embeddings` is `{path: embeddings}`."""
        return {"path": data} if isinstance(data, str | os.PathLike) else data


class Tiles(Section):
    """The squares that become tiles."""

    section: ClassVar[str] = "tiles."

    size: Count = 224
    """Side of a tile as the encoder gets it, in px at the target resolution."""
    chosen: LocalPath | None = Field(default=None, alias="from")
    """HDF5 with `coords` of TRIDENT or CLAM: exactly those tiles are embedded, each averaged to `size` px, whatever the tissue says. One file for one
    slide, a folder with `<slide id>_patches.h5` or `<slide id>.h5`, or a pattern such as `features/{slide}.h5`. Takes the place of `level`, `mpp`,
    `stride` and `edge`. Relative to the working directory."""
    level: Index | None = None
    """Pyramid level whose pixels are taken as they are, 0 the finest. Either this or `mpp`."""
    mpp: Positive | None = Field(default=None, validate_default=True)
    """Target resolution, in µm/px. Either this or `level`."""
    mpp_tolerance: Fraction = 0.05
    """How much coarser than `mpp` an image may be, as a share of it, for its own level-0 pixels to be taken as they are: with 0.05, images of 0.2527 and
    of 0.25 µm/px run together at 0.25, as encoders serve both. The scale is then exactly 1, and what was done stands among the slide's warnings.
    Anything coarser is refused: pixels are averaged, never invented."""
    stride: Count = Field(default=None, validate_default=True)
    """Step between tile origins, in px at the target resolution. `size` where it is not given."""
    edge: Literal["pad", "drop"] = "pad"
    """Whether tiles that hang over the image are filled with white or left out."""
    fast_downsample: Switch = False
    """Whether JPEG may be decoded at 1/2 or 1/4 scale where that is the factor wanted and the file has no such level.

    Two to four times faster than decoding all pixels and averaging them. Against the average, pixels of CMU-1-Small-Region.svs differ by
    0.1 grey levels in the mean and by 2 at most in 99 %, those of a sample slide with noise in every pixel by 0.9 and 13; the cosine
    of the embeddings of both (ViT-Ti/16, centred, worst tile) is 0.9999 and 0.9994."""
    tissue: Tissue = Tissue()
    """Which tiles are kept."""

    @field_validator("mpp")
    @classmethod
    def _one_resolution(cls, mpp: float | None, info: ValidationInfo) -> float | None:
        level = info.data.get("level")
        if info.data.get("chosen") is not None:
            if mpp is not None or level is not None:
                raise ValueRefusedError("tiles.from says how large its tiles are in the image. Leave tiles.mpp and tiles.level out")
            return None
        if mpp is not None and level is not None:
            raise ValueRefusedError(
                f"{mpp:g}, but tiles.level is {level} as well, and exactly one of them is wanted. Remove one; "
                "on the command line with --set tiles.mpp=null or --set tiles.level=null"
            )
        if mpp is None and level is None and "level" in info.data:
            raise ValueRefusedError("missing. Write the resolution to work at: mpp: 0.5 (µm/px, 20x), or level: 0 (the file's own pixels)")
        return mpp

    @field_validator("stride", mode="before")
    @classmethod
    def _stride_from_size(cls, stride: Any, info: ValidationInfo) -> Any:
        if stride is not None and info.data.get("chosen") is not None and stride != info.data.get("size"):
            raise ValueRefusedError(f"{yaml_word(stride)}, but tiles.from says where tiles lie. Leave tiles.stride out")
        return info.data.get("size", 1) if stride is None else stride

    @field_validator("edge")
    @classmethod
    def _edge_of_own_tiles(cls, edge: str, info: ValidationInfo) -> str:
        if edge != "pad" and info.data.get("chosen") is not None:
            raise ValueRefusedError(f"{edge}, but tiles.from says which tiles are wanted. Leave tiles.edge out")
        return edge

    def recorded(self) -> dict[str, Any]:
        """What numbers depend on, without what is `UNSTATED`."""
        unstated = {"ground"} if self.tissue.ground == UNSTATED["tiles.tissue.ground"] else set()
        return self.model_dump(mode="json", exclude={"chosen": True, "tissue": unstated})


class Encoder(Section):
    """The model that turns a tile into a vector, or into tokens."""

    section: ClassVar[str] = "encoder."

    name: Text
    """One of our own, a preset, or `module:factory`; from Python also a torch.nn.Module, or a function that returns one."""
    weights: LocalPath | None = None
    """File of weights, relative to the working directory; None for seeded random ones."""
    args: Arguments = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the arithmetic; auto is bf16 where the device has matrix units for it, else fp16 likewise, where the encoder says that it can
    be cast, else fp32. An encoder that leaves the range of fp16 on probe tiles runs in bf16; single tiles that leave it are computed in fp32."""
    allow_mismatch: Switch = False
    """Whether an encoder may run at another tile size or resolution than it was made for."""

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """`encoder: patch_embed` is `{name: patch_embed}`, and so is an object in its place."""
        return {"name": data} if isinstance(data, str) or callable(data) else data

    @field_validator("name", mode="before")
    @classmethod
    def _name_of_object(cls, name: Any) -> Any:
        return name_object(name) if callable(name) else name


class Context(Kept):
    """The transformer in which tokens of one window see each other."""

    section: ClassVar[str] = "context."
    kind: ClassVar[str] = "context"

    window: Count = 8
    """Side of a window, in tokens."""
    depth: Count = 4
    """Number of layers."""
    heads: Count = 6
    """Attention heads; they divide the width."""
    shift: Switch = True
    """Whether every other layer shifts its windows by half a window."""
    position: Literal["sincos", "learned", "rope", "bias", "log_bias", "none"] = "sincos"
    """How a token's place enters: absolute in µm or learned, at the input; rotary or as a bias of logits, inside windows; not at all."""
    width: Count | None = None
    """Numbers of a token between the layers; None for those of the encoder. With a width, tokens are standardised, brought to it and back."""
    weights: LocalPath | None = None
    """File of weights, relative to the working directory, or the name of a context in the box (tilestream-lite-context); None for seeded random
    ones. A file that `fit` wrote says its own window, depth, heads, shift, position and width."""
    seed: Index = 0
    """Seed of the random weights."""
    schedule: Literal["auto", "dense", "row_bands", "halo_shards"] = "auto"
    """How the grid is passed: whole, in bands of rows by one worker, or in shards with a halo by several. The result is the same;
    auto takes the first that fits."""
    exact: Switch = False
    """Whether results are bit-identical on a CPU whatever the schedule, shards, workers, threads and batch size: the encoder then runs
    in batches of one fixed size, and everything in fp32."""

    def recorded(self) -> dict[str, Any]:
        """What numbers depend on; a width that is not set is left out, as it was before there was one."""
        return self.model_dump(mode="json", exclude={"schedule", "kept_as", *(["width"] if self.width is None else [])})


class Windows(Section):
    """Vectors of squares of the token grid, kept where `output.save` lists `windows`."""

    section: ClassVar[str] = "windows."

    sides: Sides = (16,)
    """Sides of the squares, in tokens, each a multiple of the one before: [16, 256] over 16 px tokens are squares of 256 and 4,096 px.
    The first pools tokens, each further one the vectors of the one before."""
    pool: Literal["mean", "max", "gated_attention", "queries"] = "mean"
    """The rule."""
    weights: LocalPath | None = None
    """File of weights of a rule that learns; None for seeded random ones."""


class Config(Section):
    """Everything that a run is told."""

    slides: Paths
    """Path, glob, CSV with columns path[,id][,mpp][,mask], `sample://` address, or a list of them. A VRT, a JSON of STAC items, or `mosaic://` before a
    folder, a pattern or a .txt list of GeoTIFFs is one slide. Relative to the working directory."""
    output: Output
    """Where results go, and which."""
    source: SourceChoices = SourceChoices()
    """What the files leave open."""
    tiles: Tiles
    """The squares that become tiles."""
    encoder: Encoder
    """The model that turns a tile into a vector; it may be left out where every head reads pixels."""
    context: Context | None = None
    """The transformer on the token grid; None leaves it out."""
    pool: Pool = Pool()
    """How one vector is made of a slide's; or a list of ways, each of which makes one."""
    windows: Windows = Windows()
    """Vectors of squares of the token grid."""
    heads: Heads = Field(default_factory=dict)
    """Answers, each under a name of its own."""
    compute: Compute = Field(default=Compute(), validate_default=True)
    """Where the work is done."""
    on_error: OnError = OnError()
    """What happens when an input is bad."""

    @classmethod
    def written_out(cls, data: Any) -> Any:
        """Without an encoder, where there are heads, there is none, and nothing of it is pooled or kept."""
        if not isinstance(data, Mapping) or not (data.get("heads") or data.get("encoder") == NO_ENCODER):
            return data
        encoder = Encoder.written_out(data.get("encoder") or NO_ENCODER)
        if not isinstance(encoder, Mapping) or encoder.get("name") != NO_ENCODER:
            return data
        output = Output.written_out(data.get("output"))
        if isinstance(output, Mapping):
            output = {key: value for key, value in output.items() if key != "save" or value}
        return {**data, "encoder": encoder, "output": output, "pool": data.get("pool") or "none"}

    @field_validator("heads")
    @classmethod
    def _check_heads(cls, heads: dict[str, Head], info: ValidationInfo) -> dict[str, Head]:
        if not {"output", "encoder", "context", "pool"} <= info.data.keys():  # refused for itself
            return heads
        source = info.data.get("source")
        if source is not None and source.valued and (name := next((name for name, head in heads.items() if head.input == "pixels"), None)):
            raise ValueRefusedError(
                f"{name} reads pixels, which are colours, but source.normalise asks for values of bands. Run it by itself"
            )
        encoder, pool = info.data["encoder"].name != NO_ENCODER, info.data["pool"].name != "none"
        context, vector = info.data["context"] is not None, pool and "slide" in info.data["output"].save
        if not encoder and not heads:
            raise ValueRefusedError("none, and there is no encoder either. Write one of both")
        if not encoder and (context or pool):
            raise ValueRefusedError(f"{'context' if context else 'pool'} is given, but there is no encoder. Write one, or leave it out")
        if problem := problem_of_heads(heads, context=context, encoder=encoder, vector=vector):
            raise ValueRefusedError(problem)
        return heads

    @field_validator("compute")
    @classmethod
    def _keep_objects_in_their_process(cls, compute: Compute, info: ValidationInfo) -> Compute:
        encoder = info.data.get("encoder")
        if encoder is not None and is_object_name(encoder.name) and not compute.scheduler.stays_here(compute.workers):
            raise ValueRefusedError(told_elsewhere(encoder.name, compute.scheduler.kind))
        return compute

    @field_validator("pool")
    @classmethod
    def _check_pool(cls, pool: Pool, info: ValidationInfo) -> Pool:
        output = info.data.get("output")
        if pool.name == "none" and output is not None and "save" in output.model_fields_set and "slide" in output.save:
            raise ValueRefusedError("none, but output.save asks for slide. Choose a pool, or leave slide out of output.save")
        return pool

    @model_validator(mode="after")
    def _name_pool_after_context(self) -> Self:
        name = None if self.context is None else self.context.kept_as
        if name is not None and "windows" in self.output.save:
            raise ValueRefusedError(
                f"output.save: windows are kept of one context only, and context.as is {name}. Leave windows or context.as out"
            )
        if name is not None and self.pool.kept_as is None:
            if name in (pool.kept_as for pool in self.pool.beside):
                raise ValueRefusedError(
                    f"pool: two pools are kept as {name}, the one without a name as context.as has it. Give one of them another name by `as`"
                )
            object.__setattr__(self, "pool", self.pool.model_copy(update={"kept_as": name}))
        return self

    @model_validator(mode="after")
    def _save_nothing_that_is_not_made(self) -> Self:
        unmade = {"slide"} if self.pool.name == "none" else set()
        unmade |= set(self.output.save) if self.encoder.name == NO_ENCODER else set()
        if unmade & set(self.output.save):
            saved = tuple(part for part in self.output.save if part not in unmade)
            object.__setattr__(self, "output", self.output.model_copy(update={"save": saved}))
        return self
