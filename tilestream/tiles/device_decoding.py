"""JPEG streams to pixels on a device, many at a time: nvImageCodec, and libjpeg-turbo where that does not serve."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilestream.errors import ConfigError, ReadError
from tilestream.sources.base import Pixels
from tilestream.sources.tiff.codecs.jpeg import EOI, decode_stream, scan_markers
from tilestream.tiles.decoding.processes import DecodeProcesses, SharedPixels
from tilestream.tiles.read_spec import GROUPS_IN_WORK

RESERVE_IMAGES = 256
"""Images of up to 131,072 px for which memory is taken at once, so that a short first batch is not followed by a new start."""


class StreamDecoder(Protocol):
    """Decodes complete JPEG streams, many at a time."""

    device: torch.device

    def decode(self, streams: list[bytes], height: int, width: int) -> tuple[Tensor, dict[int, str]]:
        """(k, height, width, 3) uint8 RGB of k streams on the device, and for those that failed the reason by place in the list.

        An image smaller than (height, width) lies at the top left; what is beside it, and what failed, is undefined. The tensor may
        be memory that the next call overwrites in stream order.
        """


class CpuDecoder:
    """libjpeg-turbo on the host, for machines without a device, and for streams that a device's decoder refuses."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def decode(self, streams: list[bytes], height: int, width: int) -> tuple[Tensor, dict[int, str]]:
        pixels = np.empty((len(streams), height, width, 3), np.uint8)
        failures = {}
        for k, stream in enumerate(streams):
            try:
                decoded = self._decode_one(stream, height, width)
                pixels[k, : decoded.shape[0], : decoded.shape[1]] = decoded
            except ReadError as error:
                failures[k] = str(error)
        return torch.from_numpy(pixels).to(self.device), failures

    @staticmethod
    def _decode_one(stream: bytes, height: int, width: int) -> Pixels:
        frame = scan_markers(stream)
        if frame.height > height or frame.width > width:
            raise ReadError(f"JPEG of {frame.height} x {frame.width} px in a file tile of {height} x {width}")
        return decode_stream(stream, np.empty((frame.height, frame.width, 3), np.uint8))


class HostDecoder:
    """Memory in which the host decodes groups of pieces, on their way to a device; used in turn, pinned for CUDA.

    Memory bound: `GROUPS_IN_WORK` groups on the host. Not for use by two readers at once.

    Parameters
    ----------
    device : torch.device
        Where pieces go.
    processes : DecodeProcesses or None
        What decodes; None where threads of this process do.
    """

    def __init__(self, device: str | torch.device, processes: DecodeProcesses | None = None) -> None:
        self.device = torch.device(device)
        self.processes = processes
        self.shared: list[SharedPixels | None] = [None] * GROUPS_IN_WORK
        """The memory of each turn, where processes decode."""
        self._groups: list[Tensor | None] = [None] * GROUPS_IN_WORK
        self._pinned = [False] * GROUPS_IN_WORK
        self._sent: list[torch.cuda.Event | None] = [None] * GROUPS_IN_WORK

    def open(self, group: int, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """(count, height, width, 3) uint8 to decode a group of pieces into; the group before it in this memory has left."""
        turn = group % GROUPS_IN_WORK
        if (sent := self._sent[turn]) is not None:
            sent.synchronize()
        memory = self._groups[turn]
        if memory is None or len(memory) < count or memory.shape[1:3] != (height, width):
            memory = self._groups[turn] = self._memory(turn, (count, height, width, 3))
        pixels: NDArray[np.uint8] = memory[:count].numpy()
        return pixels

    def _memory(self, turn: int, shape: tuple[int, ...]) -> Tensor:
        """Memory of a shape for a turn, pinned for CUDA; shared where processes decode."""
        pinned = self.device.type == "cuda"
        if self.processes is None:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self._unpin(turn)
        shared = self.shared[turn] = SharedPixels(int(np.prod(shape)))
        memory = torch.from_numpy(shared.bytes.reshape(shape))
        if pinned:
            self._pinned[turn] = pin(memory, self.device)
        return memory

    def _unpin(self, turn: int) -> None:
        """Before memory is given back: CUDA would take what comes to lie there next for pinned."""
        memory = self._groups[turn]
        if self._pinned[turn] and memory is not None:
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        self._pinned[turn] = False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be ending
            for turn in range(GROUPS_IN_WORK):
                self._unpin(turn)

    def send(self, group: int, places: list[int]) -> Tensor:
        """(k, height, width, 3) uint8 on the device: the pieces at (k,) ascending places of a group, once they are decoded."""
        turn = group % GROUPS_IN_WORK
        memory = self._groups[turn]
        assert memory is not None, "a group is opened before it is sent"
        count = places[-1] + 1
        pixels = memory[:count].to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            self._sent[turn] = torch.cuda.Event(blocking=True)
            self._sent[turn].record()  # type: ignore[union-attr]
        return pixels if count == len(places) else pixels[torch.tensor(places, device=self.device)]


def pin(memory: Tensor, device: torch.device) -> bool:
    """Have CUDA know a tensor's memory as pinned; False where it refuses, and copies then wait for the host."""
    if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0:
        return True
    with contextlib.suppress(RuntimeError):  # the next launch would report the refusal as its own
        torch.zeros(1, device=device)
    return False


class NvImageCodecDecoder:
    """nvImageCodec on a CUDA device: its JPEG engine where there is one, else CUDA kernels; chroma upsampled as libjpeg-turbo does.

    A stream without an end, or that nvImageCodec refuses, is decoded by libjpeg-turbo, whose message is kept when that fails
    too: pixels pass through the host for those alone. Not for use by two threads at once.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    hardware : bool
        Whether the JPEG engine may be used.
    threads : int
        Host threads that parse and Huffman-decode what the engine does not take; 0 is one a core.
    options : str
        Further options of nvImageCodec, such as `nvjpeg_cuda_decoder:hybrid_huffman_threshold=0`.

    Raises
    ------
    ConfigError
        The package, or the nvJPEG library that it loads, is missing or too old.
    """

    def __init__(self, device: str | torch.device, *, hardware: bool = True, threads: int = 0, options: str = "") -> None:
        self.device = torch.device(device)
        try:
            self._codec: Any = importlib.import_module("nvidia.nvimgcodec")
        except ImportError as error:
            raise ConfigError(f"source.decode: gpu needs nvImageCodec ({error}). Run: pip install 'tilestream[gpu]'") from error
        self._memory = torch.empty(0, 0, 0, 3, dtype=torch.uint8, device=self.device)
        self._images: list[Any] = []
        self._stream = -1
        self._held: list[Any] = []
        self._spare = CpuDecoder(self.device)
        try:
            self._open(hardware=hardware, threads=threads, options=options)
        except (RuntimeError, TypeError, AttributeError) as error:  # a version before 0.9 lacks arguments or names
            version = self._codec.__version__
            raise ConfigError(
                f"source.decode: gpu: nvImageCodec {version} fails: {error}. Run: pip install 'tilestream[gpu]', or choose cpu."
            ) from error

    def _open(self, *, hardware: bool, threads: int, options: str) -> None:
        """Make the decoder and decode one image: without nvJPEG, nvImageCodec says nothing and decodes nothing."""
        codec = self._codec
        kinds = [codec.BackendKind.HYBRID_CPU_GPU, codec.BackendKind.GPU_ONLY]
        if hardware:
            kinds.insert(0, codec.BackendKind.HW_GPU_ONLY)
        number = torch.cuda.current_device() if self.device.index is None else self.device.index
        self._decoder = codec.Decoder(
            device_id=number,
            max_num_cpu_threads=threads,
            backends=[codec.Backend(kind) for kind in kinds],
            options=f":fancy_upsampling=1 {options}".strip(),
        )
        self._params = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_RGB
        )
        import simplejpeg

        example = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8), 90, "RGB", "420")
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            self._reserve(1, 64, 64, stream)
            (image,) = self._decoder.decode([codec.CodeStream(example)], images=self._images[:1], params=self._params, cuda_stream=stream)
        if image is None:
            raise ConfigError(
                "source.decode: gpu: nvImageCodec decodes no JPEG; the nvJPEG library is missing or older than the driver wants. "
                "Run: pip install 'tilestream[gpu]', or choose cpu."
            )

    def decode(self, streams: list[bytes], height: int, width: int) -> tuple[Tensor, dict[int, str]]:
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            self._reserve(len(streams), height, width, stream)
            parsed = [self._parse(data, height, width) for data in streams]
            sent = [k for k, code in enumerate(parsed) if code is not None]
            codes = [parsed[k] for k in sent]
            done = []
            if sent:
                images = [self._images[k] for k in sent]
                done = self._decoder.decode(codes, images=images, params=self._params, cuda_stream=stream)
            self._held = codes  # the device may still be copying their bytes
            decoded = {k for k, image in zip(sent, done, strict=True) if image is not None}
            failures = {}
            for k in (k for k in range(len(streams)) if k not in decoded):
                pixels, failed = self._spare.decode([streams[k]], height, width)
                if failed:
                    failures[k] = failed[0]
                else:
                    self._memory[k] = pixels[0]
            return self._memory[: len(streams)], failures

    def _parse(self, data: bytes, height: int, width: int) -> Any:
        """A stream of nvImageCodec, or None where libjpeg-turbo shall judge, as of a stream that is cut off: a device need not notice."""
        if not data.endswith(EOI) and not data.rstrip(b"\0").endswith(EOI):
            return None
        try:
            code = self._codec.CodeStream(data)
        except RuntimeError:
            return None
        # One image that does not fit its memory would fail the whole batch.
        return code if code.height <= height and code.width <= width else None

    def _reserve(self, count: int, height: int, width: int, stream: int) -> None:
        """Memory for `count` images, known to nvImageCodec: telling it of one takes as long as parsing two streams."""
        known, *shape = self._memory.shape[:3]
        if count <= known and shape == [height, width] and stream == self._stream:
            return
        self._memory = torch.empty(
            max(count, RESERVE_IMAGES if height * width <= 1 << 17 else 0), height, width, 3, dtype=torch.uint8, device=self.device
        )
        self._images = self._codec.as_images(
            list(self._memory.unbind(0)),
            cuda_stream=stream,
            sample_format=self._codec.SampleFormat.I_RGB,
            color_spec=self._codec.ColorSpec.SRGB,
        )
        self._stream = stream
