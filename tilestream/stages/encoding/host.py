"""An encoder on a processor: batches of one shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tilestream.errors import ConfigError


def host_encoder(encoder: nn.Module, name: str, batch: int) -> Callable[[Tensor], Tensor]:
    """An encoder on a CPU over batches of at most `batch` tiles (n, tile, tile, 3) uint8; fewer are filled up, so that shapes never change."""

    def encode(tiles: Tensor) -> Tensor:
        count = len(tiles)
        if count < batch:
            tiles = torch.cat([tiles, tiles.new_zeros(batch - count, *tiles.shape[1:])])
        out: Tensor = encoder(tiles.permute(0, 3, 1, 2))
        check_output(out, len(tiles), name)
        return out[:count]

    return encode


def check_output(out: object, tiles: int, name: str) -> None:
    """Refuse what is no encoder's result for so many tiles.

    Raises
    ------
    ConfigError
        With what came.
    """
    if not (isinstance(out, Tensor) and out.is_floating_point() and out.ndim in (2, 3) and len(out) == tiles):
        seen = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"encoder.name: {name} gave {seen} for {tiles} tiles; an encoder returns (n, dim) or (n, tokens, dim) floating point."
        )
