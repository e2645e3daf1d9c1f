"""Detectors with three branches from a folder: `config.json` and `model.safetensors`.

The config holds `detector` (three_branch), `classes`, and optionally width, depth, mean, std, size, mpp, overlap and context: see
`models.heads.objects.three_branch`.
"""

from __future__ import annotations

from tilestream.encoders.heads.loaded import HeadFolder, LoadedHead
from tilestream.encoders.weights import apply_weights, read_weights, weights_digest
from tilestream.errors import ConfigError
from tilestream.models.heads.objects.three_branch import MapDetector, ThreeBranch
from tilestream.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD

NAME = "three_branch"

NUMBERS = {"size": int, "mpp": float, "overlap": int, "context": int}
"""What such a folder may say of its patches."""


def load_three_branch(found: HeadFolder) -> LoadedHead:
    """A detector of ours from its folder."""
    config, where = found.config, f"{found.key}: {found.path / 'config.json'}"
    if config["detector"] != NAME:
        raise ConfigError(
            f"{where}: detector is {config['detector']!r}, but {NAME} is the one that is known. Wrap the model in a module:factory."
        )
    classes = config["classes"]
    if not isinstance(classes, list) or not classes:
        raise ConfigError(f"{where}: classes are {classes!r}, but a list of names is needed.")
    net = ThreeBranch(len(classes), int(config.get("width", 32)), int(config.get("depth", 4)))
    weights = found.weights or found.path
    apply_weights(net, read_weights(weights)[0], weights, found.key.removesuffix(".model"))
    module = MapDetector(net.eval(), tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD)))
    stated = {name: kind(config[name]) for name, kind in NUMBERS.items() if config.get(name) is not None}
    return LoadedHead(
        module, "detection", tuple(map(str, classes)), weights_digest(module), kind="detect", input="pixels", **stated,
    )  # fmt: skip
