"""Tiles whose results leave the range of fp16 are computed again in fp32.

Which tiles these are is told by their results alone, and they are computed on the same weights in batches of one small size, filled up with
black: a row depends on its tile and the encoder, never on what else was in its batch.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilestream.errors import InterruptedRunError
from tilestream.stages.encoding.host import HostEncoder

BATCH = 8
"""Tiles computed again at once."""


class WideTwin:
    """An encoder of fp16 once more in fp32, made when the first tile needs it.

    Parameters
    ----------
    encoder : nn.Module
        In fp16, on its device.
    name : str
        Of the encoder, for messages.
    """

    def __init__(self, encoder: nn.Module, name: str) -> None:
        self.encoder, self.name = encoder, name
        self._twin: nn.Module | None = None

    @property
    def host_bytes(self) -> int:
        """Memory of this machine that it takes once it is made."""
        return sum(4 * value.numel() for value in self.encoder.parameters() if value.device.type == "cpu")

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8] | Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of tiles (n, tile, tile, 3) uint8 the results of `rows` (m,): (m, dim) or (m, tokens, dim).

        Raises
        ------
        InterruptedRunError
            The device's memory does not hold it.
        """
        try:
            if self._twin is None:
                self._twin = copy.deepcopy(self.encoder).float()
            encode, device = HostEncoder(self._twin, self.name, BATCH, exact=True), next(self._twin.parameters()).device
            tiles = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
            chosen = tiles[torch.from_numpy(rows).to(tiles.device)].to(device)
            found = torch.cat([encode(part).float() for part in torch.split(chosen, BATCH)]).cpu()
        except torch.OutOfMemoryError as error:
            raise InterruptedRunError(
                f"the device's memory does not hold {self.name} in fp32 beside fp16, and tiles left the range of fp16. Set encoder.precision to bf16."
            ) from error
        done: NDArray[np.float32] = found.numpy()
        return done


def beyond_range(out: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows (n,) of results (n, dim) or (n, tokens, dim) are not finite."""
    with np.errstate(invalid="ignore"):  # infinities of both signs
        found: NDArray[np.bool_] = ~np.isfinite(out.reshape(len(out), -1).sum(axis=1, dtype=np.float64))
    return found
