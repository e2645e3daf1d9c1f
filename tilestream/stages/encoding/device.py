"""An encoder on a CUDA device: one shape for every batch, captured as a graph once, so that launching costs the host next to nothing.

Sixteen decoding threads share the interpreter with the thread that launches; launched one by one, the kernels of a small transformer
came late, and an H200 ran ViT-S/16 at half its speed.
"""

from __future__ import annotations

import gc
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.errors import InterruptedRunError
from tilestream.sources.base import RGB, PixelKind
from tilestream.stages.encoding.compiling import Measured, compiled_twin, one_measures, recall, remember
from tilestream.stages.encoding.host import check_output

LARGEST_BATCH = 512
"""Tiles; no encoder that was measured on an H200 gains from more."""

GAIN = 1.03
"""A batch twice as large is taken where it gives this much more throughput."""

MEASURED, WARMED = 2, 2
"""Batches that are timed of each size, and that run before one is captured."""

_MEMORY_SHARE = 0.7
"""Part of the device's free memory that a batch's activations may take."""


class _Path:
    """One way through an encoder, eager or compiled: its module, and the graph of a batch."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.graph: torch.cuda.CUDAGraph | None = None
        self.input = self.output = torch.empty(0)

    def forward(self, tiles: Tensor) -> Tensor:
        found: Tensor = self.module(tiles.permute(0, 3, 1, 2))
        return found


class DeviceEncoder:
    """Runs an encoder over batches of tiles of one size, eager from the start; compiled as well once `compile` has returned True.

    Both ways have a graph of their own. Their results differ in the last bits: who calls says which one a slide is computed by.

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
    pixel : PixelKind
        What a pixel of a tile holds.

    Raises
    ------
    InterruptedRunError
        Not even a batch of one fits into the device's memory.
    """

    def __init__(self, encoder: nn.Module, name: str, tile: int, batch: int | None, device: torch.device, pixel: PixelKind = RGB) -> None:
        self.encoder = encoder
        self.pixel = pixel
        self.name = name
        self.tile = tile
        self.device = device
        self.notes: list[str] = []
        self._measured: Measured | None = None
        self._eager = _Path(encoder)
        self._compiled: _Path | None = None
        self._compiling = threading.Lock()
        self._refused = False
        with torch.inference_mode(), self._at_device():
            self.batch = batch or self._choose_batch()
            self._capture_or_halve(self._eager)

    def __call__(self, tiles: Tensor, *, compiled: bool = False) -> Tensor:
        """(n, tile, tile, 3) uint8 or (n, tile, tile, bands) float32 on the device, any n, to (n, dim) or (n, tokens, dim) in memory of its own; compiled only once that is made."""
        with self._at_device():
            return self._encode(tiles, compiled=compiled)

    def _at_device(self) -> AbstractContextManager[Any]:
        """Makes the device the calling thread's own: streams and graphs are otherwise made on the first one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _encode(self, tiles: Tensor, *, compiled: bool) -> Tensor:
        path = self._compiled if compiled else self._eager
        assert path is not None, "compile first"
        done: list[Tensor] = []
        while len(tiles):
            if len(path.input) != self.batch:  # its first batch, or the batch was halved
                self._capture_or_halve(path)
            try:
                done.append(self._run(path, tiles[: self.batch]))
            except torch.OutOfMemoryError:
                self._capture_or_halve(path, self.batch // 2)
            else:
                tiles = tiles[self.batch :]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _run(self, path: _Path, tiles: Tensor) -> Tensor:
        count = len(tiles)
        if path.graph is None:
            if count < self.batch:
                tiles = torch.cat([tiles, tiles.new_zeros(self.batch - count, *tiles.shape[1:])])
            return path.forward(tiles)[:count]
        path.input[:count].copy_(tiles)
        path.graph.replay()
        return path.output[:count].clone()

    def compile(self) -> bool:
        """Compile what is repeated in the encoder; whether that could be done. From any thread, while others run the encoder eager."""
        with self._compiling:
            if self._compiled is None and not self._refused:
                try:
                    with torch.inference_mode(), self._at_device():
                        path = _Path(compiled_twin(self.encoder))
                        path.forward(self._blank(self.batch))
                except Exception as error:  # noqa: BLE001  # whatever a compiler meets, the encoder works without it
                    self._refused = True
                    self.notes.append(f"the encoder runs uncompiled: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
                else:
                    self._compiled = path
            return self._compiled is not None

    def seconds_a_tile(self) -> float:
        """What a tile takes without compiling."""
        if self._measured is None or self._measured.batch != self.batch:
            with torch.inference_mode(), self._at_device():
                self._measured = Measured(self.batch, self._measure(self.batch)[0] / self.batch)
        return self._measured.tile_seconds

    def _blank(self, batch: int) -> Tensor:
        dtype = torch.float32 if self.pixel.bands else torch.uint8
        return torch.zeros(batch, self.tile, self.tile, self.pixel.channels, dtype=dtype, device=self.device)

    def _choose_batch(self) -> int:
        """The batch that serves best, as it was measured on such a device before or is now."""
        self._measured = recall(self.encoder, self.tile, self.device)
        if self._measured is None:
            with one_measures():  # workers of one machine begin at once: the others take what the first one found, and all have one batch
                self._measured = recall(self.encoder, self.tile, self.device) or self._best_batch()
                remember(self.encoder, self.tile, self.device, self._measured)
        return self._measured.batch

    def _best_batch(self) -> Measured:
        """Double the batch until throughput stops rising or memory would be exceeded."""
        best, batch = Measured(1, float("inf")), 128
        while batch <= LARGEST_BATCH:
            try:
                seconds, used = self._measure(batch)
            except torch.OutOfMemoryError:
                _give_back()
                if best.batch == 1 and batch > 1:
                    batch //= 2
                    continue
                break
            if best.tile_seconds < seconds / batch * GAIN:
                break
            best = Measured(batch, seconds / batch)
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
        self._eager.forward(tiles)
        used = torch.cuda.max_memory_allocated(self.device) - before
        times = []
        for _ in range(MEASURED):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            self._eager.forward(tiles)
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times), used

    def _capture_or_halve(self, path: _Path, batch: int | None = None) -> None:
        """Capture the graph of a batch, of half as many tiles where memory is short, down to one."""
        self.batch = self.batch if batch is None else batch
        while self.batch >= 1:
            try:
                self._capture(path)
            except torch.OutOfMemoryError:
                path.graph = None
                _give_back()
                self.notes.append(f"a batch of {self.batch} tiles does not fit into the device's memory; going on with {self.batch // 2}")
                self.batch //= 2
            else:
                return
        raise InterruptedRunError(
            "the device's memory does not hold a batch of one tile. Free it (nvidia-smi shows who holds it), "
            "choose a smaller encoder or encoder.precision: bf16, or set compute.device to cpu."
        )

    def _capture(self, path: _Path) -> None:
        path.graph = None
        path.input = self._blank(self.batch)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARMED):
                check_output(path.forward(path.input), self.batch, self.name)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device), capture_error_mode="thread_local"):
                path.output = path.forward(path.input)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an encoder that waits for the device cannot be captured
            torch.cuda.synchronize(self.device)
            self.notes.append(f"the encoder runs without a CUDA graph: {str(error).splitlines()[0][:200]}")
            return
        path.graph = graph


def _give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
