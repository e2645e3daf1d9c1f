"""An encoder by name, for use from Python."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder


def load_encoder(name: str, weights: str | os.PathLike[str] | None = None, **args: Any) -> nn.Module:
    """Build an encoder and load its weights.

    Parameters
    ----------
    name : str
        As `encoder.name` in a config: one of `tilestream encoders`, `timm:<model>`, `hf:<repository>`, `module:factory`.
    weights : str or path, optional
        A weights file, or a repository of the Hugging Face hub; the encoder's own where it is not given.
    **args
        Passed to the factory.

    Returns
    -------
    encoder : nn.Module
        On the CPU in eval mode, without gradients. Takes (n, 3, size, size) uint8 and returns (n, dim); `.dim` is an attribute.

    Raises
    ------
    ConfigError
        The name is unknown, or arguments or weights do not fit it.
    InputError
        The weights cannot be read or fetched.
    """
    return build_encoder(EncoderSpec(name, None if weights is None else os.fspath(weights), args))
