"""Encoders that other libraries build: timm by model name, transformers by repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.encoders.hub import fetch_file
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import freeze, normalise_pixels

OUTPUTS = ("class", "mean", "class+mean")


class TimmEncoder(nn.Module):
    """A timm model without its classifier: what it pools for a tile, with the normalisation of its own configuration.

    Parameters
    ----------
    name : str
        As `timm.create_model` takes it, `hf-hub:owner/name` among them.
    pretrained : bool
        Whether timm fetches its weights; else they are random until a file is applied.
    options : dict
        Further arguments of `timm.create_model`.

    Raises
    ------
    ConfigError
        timm is not installed, or does not know the model or an option.
    InputError
        The weights cannot be fetched.
    """

    mpp: float | None = None

    def __init__(self, name: str, *, pretrained: bool, **options: Any) -> None:
        super().__init__()
        timm = _import("timm", "timm")
        try:
            self.model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except (RuntimeError, TypeError, KeyError, AssertionError) as error:
            raise ConfigError(f"encoder.name: timm cannot make {name!r} with {options or 'no arguments'} ({error}).") from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"timm:{name}: its weights cannot be fetched ({error}). Go online, or set encoder.weights to a file."
            ) from error
        config = self.model.pretrained_cfg
        classifier = config["classifier"]
        self.model.ignored_weights = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier or ()))
        self.pixels = tuple(config["mean"]), tuple(config["std"])
        self.tile_size = int(config["input_size"][-1])
        self.dim = int(self.model.num_features)
        self.untrained = not pretrained
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8 to (n, dim)."""
        out: Tensor = self.model(normalise_pixels(images, *self.pixels, next(self.model.parameters()).dtype))
        return out


class TransformersEncoder(nn.Module):
    """A vision model of transformers: class token, mean of the patch tokens, or both, normalised as its repository says.

    No code of the repository is run: it must be of a kind that transformers knows.

    Parameters
    ----------
    repository : str
        On the hub, or a folder.
    output : str
        `class`, `mean` or `class+mean`.

    Raises
    ------
    ConfigError
        transformers is not installed, the repository needs code of its own, or it is no vision model of tokens.
    InputError
        Files are missing or cannot be fetched.
    """

    mpp: float | None = None

    def __init__(self, repository: str, output: str = "class") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ConfigError(f"encoder.args.output: {output!r}, but it must be one of {', '.join(OUTPUTS)}.")
        transformers = _import("transformers", "hf")
        pixels = _read_json(repository, "preprocessor_config.json")
        _read_json(repository, "config.json")  # refuses gated, unknown and offline repositories in our words
        try:
            self.model = transformers.AutoModel.from_pretrained(repository)
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"encoder.name: hf:{repository} needs code of its authors, which is not run here ({error}). Wrap it in a module:factory."
            ) from error
        except OSError as error:
            raise InputError(f"hf:{repository}: {error}") from error
        self.output = output
        self.pixels = tuple(pixels.get("image_mean", (0.5,) * 3)), tuple(pixels.get("image_std", (0.5,) * 3))
        config = self.model.config
        if not hasattr(config, "hidden_size") or not hasattr(config, "patch_size"):
            raise ConfigError(f"encoder.name: hf:{repository} is a {config.model_type}, which gives no tokens of a picture.")
        self.prefix = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
        self.tile_size = _side(pixels) or int(config.image_size)
        self.dim = int(config.hidden_size) * (2 if output == "class+mean" else 1)
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8 to (n, dim)."""
        tokens = self.model(normalise_pixels(images, *self.pixels, next(self.model.parameters()).dtype)).last_hidden_state
        first, mean = tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)
        found: Tensor = torch.cat([first, mean], dim=1) if self.output == "class+mean" else first if self.output == "class" else mean
        return found


def _side(pixels: dict[str, Any]) -> int | None:
    """Side of the picture that a processor gives, px."""
    for key in ("crop_size", "size"):
        found = pixels.get(key)
        if isinstance(found, dict):
            found = found.get("height")
        if isinstance(found, int):
            return found
    return None


def _read_json(repository: str, name: str) -> dict[str, Any]:
    path = Path(repository) / name
    if not Path(repository).is_dir():
        try:
            path = fetch_file(repository, name)
        except FileNotFoundError as error:
            raise InputError(f"hf:{repository} has no {name}: it is no model of transformers. Set encoder.name to one that is.") from error
    elif not path.is_file():
        raise InputError(f"hf:{repository} has no {name}: it is no model of transformers. Set encoder.name to one that is.")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"encoder.name: {name} is not installed. Run pip install 'tilestream[{extra}]'.") from error
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"encoder.name: {name} cannot be imported ({error}). It may belong to another version of torch; install them together."
        ) from error
