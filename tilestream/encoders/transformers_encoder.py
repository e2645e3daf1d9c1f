"""Encoders that transformers builds, from a repository of the hub or a folder; what a tile becomes is stated for each architecture."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.encoders.hub import fetch_file, is_hub_id
from tilestream.encoders.imported import import_optional
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import freeze, noise_tiles, normalise_tiles

OUTPUTS = ("class", "mean", "class+mean", "pooled", "projected")


@dataclass(frozen=True)
class _Architecture:
    """What is known of the models of one kind, by the `model_type` of their configuration."""

    output: str
    """Output where the config leaves it open."""
    before: int = 1
    """Class token and others before the patches, registers not counted."""
    pooled: str | None = None
    """What its own pooling gives, in words; None: not to be taken."""
    builder: str | None = None
    """Class of transformers that holds the picture's side alone, of a model that also has text."""


_CLASS = _Architecture("class")
_CLIP = _Architecture("class", pooled="class token after the last norm")
_SIGLIP = _Architecture("pooled", 0, "attention pool of the patch tokens")
_SWIN = _Architecture("mean", 0, "mean of the patch tokens")
_BEIT = _Architecture("class", pooled="mean of the patch tokens, through the norm behind it")
_ARCHITECTURES = {
    "vit": _CLASS,
    "deit": _Architecture("class", 2),  # the distillation token is the second
    "beit": _BEIT,
    "data2vec-vision": _BEIT,
    "dinov2": _CLASS,
    "dinov2_with_registers": _CLASS,
    "dinov3_vit": _CLASS,
    "vit_mae": _CLASS,
    "vit_msn": _CLASS,
    "ijepa": _Architecture("mean", 0),
    "swin": _SWIN,
    "swinv2": _SWIN,
    "siglip_vision_model": _SIGLIP,
    "siglip": _Architecture("pooled", 0, _SIGLIP.pooled, "SiglipVisionModel"),
    "clip_vision_model": _CLIP,
    "clip": _Architecture("projected", 1, _CLIP.pooled, "CLIPVisionModelWithProjection"),
}


class TransformersEncoder(nn.Module):
    """A vision model of transformers: the vector that its kind of model is known by, normalised as its repository says.

    No code of the repository is run: it must be of a kind that transformers knows. Of a model with text as well (CLIP, SigLIP), the
    picture's side alone is built. A masked autoencoder masks nothing. One of other than three channels takes tiles of that many bands as they are.

    Parameters
    ----------
    repository : str
        On the hub, or a folder.
    output : str, optional
        `class`, `mean` or `class+mean` of the tokens after the last norm (class token, patch tokens); `pooled`, the model's own pooling;
        `projected`, the image embedding of a CLIP. By default what the architecture is known by; an unknown one needs it.
    pretrained : bool
        Whether the repository's weights are loaded; else they are random until a file is applied.

    Raises
    ------
    ConfigError
        transformers is not installed, the repository needs code of its own, it is no vision model, or what its vector is cannot be known.
    InputError
        Files are missing or cannot be fetched, or they lack weights.
    """

    mpp: float | None = None
    precisions = ("fp32", "bf16", "fp16")

    def __init__(self, repository: str, output: str | None = None, *, pretrained: bool = True) -> None:
        super().__init__()
        if output is not None and output not in OUTPUTS:
            raise ConfigError(f"encoder.args.output: {output!r}, but it must be one of {', '.join(OUTPUTS)}.")
        import_optional("transformers", "hf")
        pixels = _read_json(repository, "preprocessor_config.json")
        written = _read_json(repository, "config.json")  # refuses gated, unknown and offline repositories in our words
        self.repository, self.kind = repository, str(written.get("model_type"))
        self.known = _ARCHITECTURES.get(self.kind)
        self.output = output or self._own_output(written)
        self.model = _build_model(repository, written, self.known, self.output, pretrained=pretrained)
        if self.kind == "clip" and self.output != "projected":
            self.model = self.model.vision_model
        self.untrained = not pretrained
        config = self.model.config
        if self.kind == "vit_mae":
            config.mask_ratio = 0.0
        count = int(getattr(config, "num_channels", None) or 3)
        self.bands = 0 if count == 3 else count
        self.pixels: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()) if self.bands else processor_pixels(repository, pixels)
        self.tile_size = processor_side(pixels) or int(config.image_size)
        self.cells = self._count_cells(config)
        self.prefix = None if self.known is None else self.known.before + int(getattr(config, "num_register_tokens", 0) or 0)
        own_side = getattr(config, "image_size", self.tile_size)
        interpolated = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.options: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolated and own_side != self.tile_size else {}
        freeze(self)
        with torch.inference_mode():
            self.dim = self._probe()
        self.vector = self._say_vector()

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8, or (n, bands, size, size) float32, to (n, dim)."""
        found = self._run(images)
        if self.output == "projected":
            projected: Tensor = found.image_embeds
            return projected
        if self.output == "pooled":
            pooled: Tensor = found.pooler_output.flatten(1)
            return pooled
        tokens: Tensor = found.last_hidden_state
        assert self.prefix is not None, "known after the probe"
        mean = tokens[:, self.prefix :].mean(dim=1)
        if self.output == "mean":
            return mean
        first: Tensor = found.pooler_output if self.kind in ("clip", "clip_vision_model") else tokens[:, 0]
        return torch.cat([first, mean], dim=1) if self.output == "class+mean" else first

    def _run(self, images: Tensor) -> Any:
        pixels = normalise_tiles(images, self.pixels, next(self.model.parameters()).dtype, bands=self.bands)
        options = dict(self.options)
        if self.kind == "vit_mae":  # it shuffles patches by this noise, and keeps them all
            assert self.cells is not None, "a masked autoencoder says its patches"
            options["noise"] = torch.arange(self.cells, device=images.device).expand(len(images), -1)
        return self.model(pixel_values=pixels, **options)

    def _own_output(self, config: dict[str, Any]) -> str:
        """What a model of this kind is known by."""
        if self.known is None:
            raise ConfigError(
                f"encoder.args.output: hf:{self.repository} is a {self.kind}, and what its vector is cannot be known here. "
                f"Set it to {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}, as its authors use it."
            )
        if self.known is _BEIT and config.get("use_mean_pooling", True):
            return "pooled"  # its last norm is behind that pooling
        if self.kind == "clip_vision_model" and "CLIPVisionModelWithProjection" in (config.get("architectures") or ()):
            return "projected"
        if self.known.output == "pooled" and config.get("vision_use_head", True) is False:
            raise ConfigError(
                f"encoder.args.output: hf:{self.repository} is a {self.kind} without the head that pools its tokens, so what its vector is "
                "cannot be known. Set it to mean, if that is how its authors use it."
            )
        return self.known.output

    def _count_cells(self, config: Any) -> int | None:
        """Patches of a tile, where the configuration says their side and no later stage merges them."""
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or hasattr(config, "depths"):
            return None
        return (self.tile_size // patch) ** 2

    def _probe(self) -> int:
        """Features of a tile, from a black one; how many tokens there are must be as the architecture has it."""
        try:
            black = torch.zeros_like(noise_tiles(1, self.tile_size, self.bands))
            found = self._run(black)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"encoder.name: hf:{self.repository} is a {self.kind}, which cannot be given a picture alone ({_first_line(error)}). "
                "Name a model of pictures, or wrap this one in a module:factory."
            ) from error
        parts = {"projected": ("image_embeds",), "pooled": ("pooler_output",)}.get(self.output, ("last_hidden_state",))
        value = getattr(found, parts[0], None)
        if not isinstance(value, Tensor):
            raise self._not_given()
        if parts[0] == "last_hidden_state":
            if value.ndim != 3:
                raise self._not_given()
            if self.prefix is None and self.cells is not None:
                self.prefix = value.shape[1] - self.cells
            if self.prefix is None or (self.cells is not None and value.shape[1] != self.prefix + self.cells):
                raise self._not_given()
            if "class" in self.output and self.prefix < 1:
                raise ConfigError(
                    f"encoder.args.output: {self.output!r}, but hf:{self.repository} is a {self.kind}, which has no class token. Set it to mean"
                    + (" or pooled." if self.known is not None and self.known.pooled else ".")
                )
        return int(self.forward(black).shape[1])

    def _not_given(self) -> ConfigError:
        return ConfigError(
            f"encoder.args.output: {self.output!r}, but hf:{self.repository} is a {self.kind}, which gives no such thing of a picture. "
            "Set it to another one, or wrap the model in a module:factory."
        )

    def _say_vector(self) -> str:
        clip = self.kind in ("clip", "clip_vision_model")
        after = "class token after the last norm" if clip else "class token"
        mean = "mean of the patch tokens before the last norm" if clip else "mean of the patch tokens"
        pooled = self.known.pooled if self.known is not None and self.known.pooled else "the model's own pooling (pooler_output)"
        projected = "projection of the class token after the last norm, not scaled to unit length"
        return {"class": after, "mean": mean, "class+mean": f"{after}, {mean}", "pooled": pooled, "projected": projected}[self.output]


def _build_model(repository: str, written: dict[str, Any], known: _Architecture | None, output: str, *, pretrained: bool) -> Any:
    """The model in float32; what it lacks of weights that the output needs is an error, not random numbers."""
    transformers = import_optional("transformers", "hf")
    kind = str(written.get("model_type"))
    name = "CLIPVisionModelWithProjection" if kind == "clip_vision_model" and output == "projected" else "AutoModel"
    if known is not None and known.builder is not None:
        name = known.builder
    try:
        builder: Any = getattr(transformers, name)
        config = transformers.AutoConfig.from_pretrained(repository)
        if known is not None and known.builder is not None:
            whole, config = config, config.vision_config
            if hasattr(whole, "projection_dim"):
                config.projection_dim = whole.projection_dim
        pooling = {"add_pooling_layer": True} if kind == "data2vec-vision" and output == "pooled" else {}  # it builds none by itself
        if not pretrained:
            return builder.from_config(config, **pooling) if name == "AutoModel" else builder(config)
        with _quiet(transformers.logging):
            model, report = builder.from_pretrained(repository, config=config, dtype=torch.float32, output_loading_info=True, **pooling)
    except ModuleNotFoundError as error:  # it imports its parts when they are asked for
        raise ConfigError(f"encoder.name: hf:{repository} needs a library that cannot be imported ({error}).") from error
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"encoder.name: hf:{repository} needs code of its authors, or a class of transformers that is not chosen by itself ({_first_line(error)}). "
            "Neither is run here: wrap it in a module:factory."
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"hf:{repository}: its weights cannot be loaded ({error})") from error
    missing = [key for key in sorted(report["missing_keys"]) if output == "pooled" or not key.startswith(("pooler.", "head."))]
    if missing:
        raise InputError(
            f"hf:{repository}: {len(missing)} weights are missing ({', '.join(missing[:3])}), and random ones would stand in for them. "
            "Set encoder.args.output to something that does not need them, or fetch the repository again."
        )
    return model


def _first_line(error: Exception) -> str:
    """What another library says, without the list of everything that it knows."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without the library's progress bar, and its report of text towers left out: what is missing is looked at by the caller."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def processor_pixels(repository: str, pixels: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1] that a processor's settings come to."""
    scale = 255 * float(pixels.get("rescale_factor", 1 / 255)) if pixels.get("do_rescale", True) else 255.0
    if pixels.get("do_normalize", True):
        if "image_mean" not in pixels or "image_std" not in pixels:
            raise InputError(
                f"hf:{repository}: preprocessor_config.json has no image_mean and image_std, so how pixels are normalised is not known. "
                "Write both into it, as the authors use them."
            )
        mean, std = pixels["image_mean"], pixels["image_std"]
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return tuple(float(m) / scale for m in mean), tuple(float(s) / scale for s in std)


def processor_side(pixels: dict[str, Any]) -> int | None:
    """Side of the picture that a processor gives, px."""
    for key in ("crop_size", "size"):
        found = pixels.get(key)
        if isinstance(found, dict):
            found = found.get("height", found.get("shortest_edge"))
        if isinstance(found, int):
            return found
    return None


def _read_json(repository: str, name: str) -> dict[str, Any]:
    path = Path(repository) / name
    if not Path(repository).is_dir():
        if not is_hub_id(repository):
            raise InputError(f"hf:{repository}: there is no such folder, and a repository of the hub is owner/name. Correct the path.")
        try:
            path = fetch_file(
                repository, name, way="or fetch the whole repository on another machine and set encoder.name to hf:<its folder>"
            )
        except FileNotFoundError as error:
            raise InputError(f"hf:{repository} has no {name}: it is no model of transformers. Set encoder.name to one that is.") from error
    elif not path.is_file():
        raise InputError(f"hf:{repository} has no {name}: it is no model of transformers. Set encoder.name to one that is.")
    found: dict[str, Any] = json.loads(path.read_text())
    return found
