"""An encoder on a CUDA device: one shape for every batch, captured as a graph once, so that launching costs the host next to nothing.

Sixteen decoding threads share the interpreter with the thread that launches; launched one by one, the kernels of a small transformer
came late, and an H200 ran ViT-S/16 at half its speed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tilestream.errors import ConfigError, InterruptedRunError

LARGEST_BATCH = 512
"""Tiles; no encoder that was measured on an H200 gains from more."""

GAIN = 1.03
"""A batch twice as large is taken where it gives this much more throughput."""

_MEMORY_SHARE = 0.7
"""Part of the device's free memory that a batch's activations may take."""


class DeviceEncoder:
    """Runs an encoder over batches of uint8 tiles of one size.

    Parameters
    ----------
    encoder : nn.Module
        On the device, in its number format.
    name : str
        Of the encoder, for messages.
    tile : int
        Side of a tile, px.
    batch : int or None
        Tiles of a batch; None measures which is best.
    device : torch.device
        Where the encoder is.
    compiled : bool
        Whether its blocks are compiled.

    Raises
    ------
    InterruptedRunError
        Not even a batch of one fits into the device's memory.
    """

    def __init__(self, encoder: nn.Module, name: str, tile: int, batch: int | None, device: torch.device, *, compiled: bool) -> None:
        self.encoder = encoder
        self.name = name
        self.tile = tile
        self.device = device
        self.notes: list[str] = []
        self.compiled = compiled
        """Whether its blocks are compiled by now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.inference_mode():
            self.batch = batch or self._best_batch()
            if compiled:
                self._compile_blocks()
            self._capture_or_halve()

    def __call__(self, tiles: Tensor) -> Tensor:
        """(n, tile, tile, 3) uint8 on the device, any n, to (n, dim) or (n, tokens, dim) in memory of its own."""
        done: list[Tensor] = []
        while len(tiles):
            try:
                done.append(self._run(tiles[: self.batch]))
            except torch.OutOfMemoryError:
                self._capture_or_halve(self.batch // 2)
            else:
                tiles = tiles[self.batch :]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _run(self, tiles: Tensor) -> Tensor:
        count = len(tiles)
        if self._graph is None:
            if count < self.batch:
                tiles = torch.cat([tiles, tiles.new_zeros(self.batch - count, *tiles.shape[1:])])
            return self._forward(tiles)[:count]
        self._input[:count].copy_(tiles)
        self._graph.replay()
        return self._output[:count].clone()

    def _forward(self, tiles: Tensor) -> Tensor:
        found: Tensor = self.encoder(tiles.permute(0, 3, 1, 2))
        return found

    def _blank(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.tile, self.tile, 3, dtype=torch.uint8, device=self.device)

    def _best_batch(self) -> int:
        """Double the batch until throughput stops rising or memory would be exceeded."""
        best, speed, batch = 1, 0.0, 128
        while batch <= LARGEST_BATCH:
            try:
                seconds, used = self._measure(batch)
            except torch.OutOfMemoryError:
                _give_back()
                if best == 1 and batch > 1:
                    batch //= 2
                    continue
                break
            if speed and batch / seconds < speed * GAIN:
                break
            best, speed = batch, batch / seconds
            if used * 2 > torch.cuda.mem_get_info(self.device)[0] * _MEMORY_SHARE:
                break
            batch *= 2
        _give_back()
        return best

    def _measure(self, batch: int) -> tuple[float, int]:
        """Seconds of a batch, and the memory that its activations take."""
        tiles = self._blank(batch)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._forward(tiles)
        used = torch.cuda.max_memory_allocated(self.device) - before
        times = []
        for _ in range(4):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            self._forward(tiles)
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times), used

    def _compile_blocks(self) -> None:
        """Compile what is repeated, once for all repetitions; an encoder without blocks as a whole."""
        blocks = getattr(self.encoder, "blocks", None)
        targets = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else [self.encoder]
        before = [target.forward for target in targets]
        try:
            for target in targets:
                target.compile(fullgraph=True, dynamic=False)
            self._forward(self._blank(self.batch))
        except Exception as error:  # noqa: BLE001  # whatever a compiler meets, the encoder works without it
            for target, forward in zip(targets, before, strict=True):
                target._compiled_call_impl = None  # noqa: SLF001  # what nn.Module.compile sets
                target.forward = forward
            self.compiled = False
            self.notes.append(f"the encoder runs uncompiled: {type(error).__name__}: {str(error).splitlines()[0][:200]}")

    def _capture_or_halve(self, batch: int | None = None) -> None:
        """Capture the graph of a batch, of half as many tiles where memory is short, down to one."""
        self.batch = self.batch if batch is None else batch
        while self.batch >= 1:
            try:
                self._capture()
            except torch.OutOfMemoryError:
                self._graph = None
                _give_back()
                self.notes.append(f"a batch of {self.batch} tiles does not fit into the device's memory; going on with {self.batch // 2}")
                self.batch //= 2
            else:
                return
        raise InterruptedRunError(
            "the device's memory does not hold a batch of one tile. Free it (nvidia-smi shows who holds it), "
            "choose a smaller encoder or encoder.precision: bf16, or set compute.device to cpu."
        )

    def _capture(self) -> None:
        self._graph = None
        self._input = self._blank(self.batch)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                check_output(self._forward(self._input), self.batch, self.name)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self._forward(self._input)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an encoder that waits for the device cannot be captured
            torch.cuda.synchronize(self.device)
            self.notes.append(f"the encoder runs without a CUDA graph: {str(error).splitlines()[0][:200]}")
            return
        self._graph = graph


def _give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()


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
