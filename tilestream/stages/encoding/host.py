"""An encoder on a processor: batches of one shape, float32 layers by oneDNN."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tilestream.errors import ConfigError

PACKED_BYTES = 512 * 1024**2
"""Memory of weights in oneDNN's order, beside the weights as they are; what does not fit is multiplied as it is."""

STRIP_TILES = 4
"""Tiles of a strip: fewer cost more a tile, from ViT-Ti to ViT-L; of more the activations leave the caches and are mapped anew each time,
which at 16 tiles takes a tenth of ViT-L, 30 % of ResNet-50 and 40 % of EfficientNet-Lite0."""

FEWEST_ROWS = 256
"""Rows of a product from which on oneDNN is the faster one."""


class PackedLinear(TorchFunctionMode):
    """Within it, layers of float32 are multiplied by oneDNN, whose weights are put in order once; MKL, which torch calls, orders them each time.

    On an EPYC with AVX-512 it takes 12 to 15 % off the layers of ViT-S. Results differ from MKL's in the last bits; a row's do not depend on
    the batch's other rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}  # the weights are held, so that their ids stay theirs
        self._bytes = 0
        self._packing = threading.Lock()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs and self._serves(*args[:2]):
            values, weight, *bias = args
            packed = self._pack(weight, values.numel() // values.shape[-1])
            return torch.ops.mkldnn._linear_pointwise(values, packed, bias[0] if bias else None, "none", [], "")  # noqa: SLF001
        return func(*args, **(kwargs or {}))

    def _serves(self, values: Tensor, weight: Tensor) -> bool:
        return (
            type(weight) is nn.Parameter
            and values.dtype == weight.dtype == torch.float32
            and values.ndim > 1
            and values.numel() >= FEWEST_ROWS * values.shape[-1]
            and not weight.requires_grad
        )

    def _pack(self, weight: Tensor, rows: int) -> Tensor:
        """The weights in oneDNN's order, which serves any number of rows."""
        with self._packing:
            if id(weight) not in self._packed:
                size = weight.numel() * weight.element_size()
                if self._bytes + size > PACKED_BYTES:
                    return weight
                self._bytes += size
                self._packed[id(weight)] = weight, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)  # noqa: SLF001
            return self._packed[id(weight)][1]


def packs_linear() -> bool:
    """Whether this processor is of a kind on which `PackedLinear` was measured to gain."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class HostEncoder:
    """An encoder on a CPU over batches of at most `batch` tiles (n, tile, tile, ...); fewer are filled up, so that shapes never change.

    One that threads may call at the same time computes strips of the batch, in as many lanes as there are threads. Where `exact`, batches
    stay whole and layers are left to torch.
    """

    def __init__(self, encoder: nn.Module, name: str, batch: int, *, exact: bool = False) -> None:
        self.encoder, self.name = encoder, name
        self._packed = nullcontext() if exact or not packs_linear() else PackedLinear()
        self._strip = batch if exact or not getattr(encoder, "reentrant", False) else min(batch, STRIP_TILES)
        self._lanes = Lanes(batch // self._strip)

    @property
    def at_once(self) -> int:
        """Tiles whose activations are in memory at the same time."""
        return self._strip * self._lanes.count

    def __call__(self, tiles: Tensor) -> Tensor:
        """(n, dim) or (n, tokens, dim)."""
        parts = self._lanes.map(self._encode, filled_up(tiles, self._strip).split(self._strip))
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(tiles)]

    def _encode(self, strip: Tensor) -> Tensor:
        with torch.inference_mode(), self._packed:
            out: Tensor = self.encoder(strip.permute(0, 3, 1, 2))
        check_output(out, len(strip), self.name)
        return out


def filled_up(tiles: Tensor, step: int) -> Tensor:
    """Tiles (n, ...) with zeros behind them up to a multiple of `step`, and to one at least."""
    missing = max(1, -(-len(tiles) // step)) * step - len(tiles)
    return torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])]) if missing else tiles


class Lanes:
    """Threads that compute side by side, each on its share of the caller's threads of torch.

    With two lanes of one thread instead of two threads for each layer nobody waits at a layer's end: 8 % of ViT-S on two quiet cores, and
    half of it where decoding takes a part of one.

    Parameters
    ----------
    most : int
        Lanes, where torch may have as many threads or more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0

    @property
    def count(self) -> int:
        """Lanes, as many as torch has threads for now."""
        return max(1, min(torch.get_num_threads(), self.most))

    def map(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
        """What the function gives for each part, in their order."""
        threads, lanes = torch.get_num_threads(), self.count
        if lanes == 1:
            return [function(part) for part in parts]
        if self._pool is None or self._threads != threads:
            self._threads = threads
            self._pool = ThreadPoolExecutor(
                lanes, thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(threads // lanes,)
            )
        try:
            return list(self._pool.map(function, parts))
        finally:
            torch.set_num_threads(threads)  # new threads have set the process's own number, which later ones take over


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
