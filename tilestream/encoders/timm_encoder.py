"""Encoders that timm builds, by the name of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.encoders.imported import import_optional
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import freeze, noise_tiles, normalise_tiles
from tilestream.models.vit import resize_tiles

WORDS = {"class": "class token", "mean": "mean of the patch tokens", "class+mean": "class token, mean of the patch tokens"}
"""What each output is."""

OUTPUTS = tuple(WORDS)

_PATCHES, _MAP = "of the patch tokens", "of the last map"
_POOLINGS = {
    "token": "class token", "map": "attention pool of the tokens", "avg": "mean {}", "fast": "mean {}", "max": "maximum {}",
    "avgmax": "average of mean and maximum {}", "catavgmax": "mean {0}, maximum {0}",
}  # fmt: skip
"""What timm's poolings give, of patch tokens or of the last map."""
_RESIZED = ("bilinear", "bicubic")


class TimmEncoder(nn.Module):
    """A timm model without its classifier: what it pools for a tile, with the normalisation of its own configuration.

    A tile of the model's input size is fed whole. A larger one is brought to it as the model's configuration says: resized by its own
    interpolation to the input size divided by `crop_pct`, and the centre taken.

    Parameters
    ----------
    name : str
        As `timm.create_model` takes it, `hf-hub:owner/name` among them.
    pretrained : bool
        Whether timm fetches its weights; else they are random until a file is applied.
    output : str, optional
        `class`, `mean` or `class+mean` of the tokens after the last norm, in place of the model's own pooling. A model that pools
        nothing needs it.
    options : dict
        Further arguments of `timm.create_model`. With `in_chans` other than 3, it takes tiles of that many bands as they are.

    Raises
    ------
    ConfigError
        timm is not installed, does not know the model or an option, or what the model gives is no vector.
    InputError
        The weights cannot be fetched.
    """

    reentrant = True
    """Threads may call it at the same time: what a timm model remembers between calls is the same for each of them."""
    mpp: float | None = None
    precisions = ("fp32", "bf16", "fp16")
    takes_larger_tiles: bool
    """Whether tiles above `tile_size` are brought to it; those of bands are not."""

    def __init__(self, name: str, *, pretrained: bool, output: str | None = None, **options: Any) -> None:
        super().__init__()
        if output is not None and output not in OUTPUTS:
            raise ConfigError(f"encoder.args.output: {output!r}, but it must be one of {', '.join(OUTPUTS)}.")
        self.name, self.output = name, output
        self.model = _create_model(name, pretrained=pretrained, options=options)
        config = self.model.pretrained_cfg
        classifier = config["classifier"]
        self.model.ignored_weights = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier or ()))
        self.pixels = tuple(config["mean"]), tuple(config["std"])
        count = int(options.get("in_chans", 3))
        self.bands, self.takes_larger_tiles = (0 if count == 3 else count), count == 3
        self.tile_size = int(config["input_size"][-1])
        self.interpolation = str(config.get("interpolation", "bicubic"))
        self.crop_mode = str(config.get("crop_mode") or "center")
        self.resize = math.floor(self.tile_size / float(config.get("crop_pct") or 1))
        self.untrained = not pretrained
        freeze(self)
        self._settle_output()
        with torch.inference_mode():
            self.dim = self._probe()
            self.vector = WORDS[self.output] if self.output is not None else self._say_pooled()
        self.notes = [self._say_what_is_fed()]

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8, or (n, bands, size, size) float32, to (n, dim)."""
        if images.shape[-1] > self.tile_size and self.takes_larger_tiles:
            images = self._bring_to_size(images)
        pixels = normalise_tiles(images, self.pixels, next(self.model.parameters()).dtype, bands=self.bands)
        if self.output is None:
            out: Tensor = self.model(pixels)
            return out
        tokens = self.model.forward_features(pixels)
        first, mean = tokens[:, 0], tokens[:, self.model.num_prefix_tokens :].mean(dim=1)
        return torch.cat([first, mean], dim=1) if self.output == "class+mean" else first if self.output == "class" else mean

    def _bring_to_size(self, images: Tensor) -> Tensor:
        if self.interpolation not in _RESIZED or self.crop_mode != "center":
            raise ConfigError(
                f"tiles.size: {images.shape[-1]}, and timm:{self.name} brings pictures to {self.tile_size} px by {self.interpolation} "
                f"interpolation and the crop {self.crop_mode!r}, which is not known here. Set tiles.size to {self.tile_size}."
            )
        return resize_tiles(images, self.resize, self.tile_size, self.interpolation)

    def _say_what_is_fed(self) -> str:
        if self.bands:
            return f"timm:{self.name}: tiles of {self.tile_size} px of {self.bands} bands are fed as they are, without the normalisation of its configuration"
        larger = f"larger ones are resized to {self.resize} px ({self.interpolation}) and their centre is taken, as its configuration says"
        return f"timm:{self.name}: tiles of {self.tile_size} px are fed whole, without the crop of its configuration; {larger}"

    def _settle_output(self) -> None:
        """Make the model give what `output` asks for, where it can."""
        prefix = getattr(self.model, "num_prefix_tokens", None)
        if self.output == "mean" and prefix is None:
            self.model.reset_classifier(0, "avg")
            self.output = None
        if self.output is None:
            return
        if prefix is None or not isinstance(getattr(self.model, "fc_norm", nn.Identity()), nn.Identity):
            why = "it has no tokens" if prefix is None else "it has a norm behind its own pooling"
            raise ConfigError(f"encoder.args.output: {self.output!r}, but timm:{self.name} cannot give that: {why}. Leave it out.")
        if "class" in self.output and getattr(self.model, "cls_token", None) is None:
            raise ConfigError(f"encoder.args.output: {self.output!r}, but timm:{self.name} has no class token. Set it to mean.")

    def _say_pooled(self) -> str:
        """What the model's own vector is: the reduction of its last tokens or map that gives it, found by trying; names are not believed."""
        noise, dtype = noise_tiles(1, self.tile_size, self.bands), next(self.model.parameters()).dtype
        pixels = normalise_tiles(noise, self.pixels, dtype, bands=self.bands)
        given, last = self.model(pixels), self.model.forward_features(pixels)
        if isinstance(last, Tensor):
            for behind, layer in (("", nn.Identity()), (", through the norm behind it", getattr(self.model, "fc_norm", None))):
                for words, value in _reductions(last, getattr(self.model, "num_prefix_tokens", None)):
                    if layer is not None and value.shape == given.shape and torch.allclose(layer(value), given, rtol=1e-4, atol=1e-5):
                        return words + behind
        pooling = _pooling_of(self.model)
        if pooling == "map":
            return _POOLINGS[pooling]
        if pooling not in _POOLINGS or pooling == "token" or not isinstance(last, Tensor):
            return f"what timm's {type(self.model).__name__} gives by a rule of its own"
        return f"{_POOLINGS[pooling].format(_PATCHES if last.ndim == 3 else _MAP)}, through the layers behind it"

    def _probe(self) -> int:
        """Features of a tile, from a black one."""
        out = self.forward(torch.zeros_like(noise_tiles(1, self.tile_size, self.bands)))
        if out.ndim != 2:
            outputs = OUTPUTS if getattr(self.model, "num_prefix_tokens", None) is not None else ("mean",)
            raise ConfigError(
                f"encoder.args.output: timm:{self.name} is configured to pool nothing (global_pool ''): a tile gives {tuple(out.shape[1:])}, "
                f"and what its vector is must be said. Set it to {' or '.join(outputs)}."
            )
        return int(out.shape[1])


def _reductions(last: Tensor, prefix: int | None) -> Iterator[tuple[str, Tensor]]:
    """Vectors that poolings make of the last tokens (n, t, d), or of the last map in either order of its axes, and what each is."""
    if last.ndim == 2:
        yield "what its last layer gives", last
    elif last.ndim == 3 and prefix is not None:
        patches = last[:, prefix:]
        if prefix:
            yield "class token", last[:, 0]
        yield from _pooled(patches, (1,), _PATCHES)
        yield "mean of all tokens", last.mean(dim=1)
        if prefix > 1:
            yield "mean of the class token and the distillation token", last[:, :2].mean(dim=1)
    elif last.ndim == 3:
        yield from _pooled(last, (1,), _PATCHES)
    elif last.ndim == 4:
        for axes in ((2, 3), (1, 2)):
            yield from _pooled(last, axes, _MAP)


def _pooled(values: Tensor, axes: tuple[int, ...], whole: str) -> Iterator[tuple[str, Tensor]]:
    mean, most = values.mean(dim=axes), values.amax(dim=axes)
    found = {"avg": mean, "max": most, "avgmax": (mean + most) / 2, "catavgmax": torch.cat([mean, most], dim=1)}
    for pooling, value in found.items():
        yield _POOLINGS[pooling].format(whole), value


def _pooling_of(model: Any) -> str:
    """The name of a model's pooling, a text or a module here and in its head; empty where it has none or does not say."""
    for owner in (model, getattr(model, "head", None)):
        pooling = getattr(owner, "global_pool", None)
        if pooling is not None:
            return str(getattr(pooling, "pool_type", pooling))
    return ""


def _create_model(name: str, *, pretrained: bool, options: dict[str, Any]) -> Any:
    timm = import_optional("timm", "timm")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, TypeError, KeyError, AssertionError) as error:
        raise ConfigError(f"encoder.name: timm cannot make {name!r} with {options or 'no arguments'} ({error}).") from error
    except (OSError, ValueError) as error:
        raise InputError(f"timm:{name}: its weights cannot be fetched ({error}). Go online, or set encoder.weights to a file.") from error
