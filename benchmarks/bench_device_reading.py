"""Claim: decoding on the device gives libjpeg-turbo's pixels within 1 grey level, and `source.decode: auto` takes the faster way.

    python -m benchmarks.bench_device_reading [--side 16384] [--file-tiles 240 256 512] [--threads 16] [--rounds 3] [--json]

Measures tiles/s of one shard after another with tiles left on the device: `host` (TileReader and a copy to the device),
`host-only` (TileReader without the copy), and DeviceTileReader with each decoder that can be made here. Rounds are interleaved;
medians are printed. `host-gather` decodes on the host's threads and leaves the copying to the device. A machine without a device measures `libjpeg-turbo` in the device reader's place.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
import torch

from tilestream.buffers import PixelBuffers, ThreadBuffers
from tilestream.errors import ConfigError
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.codecs.jpeg import JpegDecoder
from tilestream.sources.tiff.source import TiffSource
from tilestream.tiles.device_decoding import CpuDecoder, HostDecoder, NvImageCodecDecoder, StreamDecoder
from tilestream.tiles.device_reader import DeviceTileReader
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

TILE, BATCH, PERIOD = 224, 512, 2048


class TorchvisionDecoder:
    """torchvision's `decode_jpeg` on lists, which calls nvJPEG."""

    def __init__(self, device: torch.device):
        from torchvision.io import ImageReadMode, decode_jpeg

        self.device, self._decode, self._mode = device, decode_jpeg, ImageReadMode.RGB

    def decode(self, streams: list[bytes], height: int, width: int) -> tuple[torch.Tensor, dict[int, str]]:
        """See StreamDecoder; a failure fails the whole batch."""
        data = [torch.frombuffer(bytearray(stream), dtype=torch.uint8) for stream in streams]
        images = self._decode(data, mode=self._mode, device=self.device)
        if any(image.shape[1:] != (height, width) for image in images):
            images = [torch.nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
        return torch.stack(images).permute(0, 2, 3, 1), {}


def make_texture() -> np.ndarray:
    """(PERIOD, PERIOD, 3) uint8: pink tissue with dark blobs and noise, periodic."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:PERIOD, :PERIOD].astype(np.float32) * np.float32(2 * np.pi / PERIOD)
    field = sum(np.cos(a * y + b * x + c) for a, b, c in zip(*rng.integers(-120, 120, (2, 24)), rng.random(24) * 6, strict=True))
    blobs = np.clip(field / 4 - 0.5, 0, 1)[..., None]
    pixels = np.array([226, 150, 190]) * (1 - blobs) + np.array([96, 60, 140]) * blobs + rng.normal(0, 6, (PERIOD, PERIOD, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_slide(path: Path, texture: np.ndarray, side: int, file_tile: int, threads: int) -> TiffSource:
    """A tiled JPEG TIFF, 4:2:0, quality 85."""
    wrapped = np.pad(texture, ((0, file_tile), (0, file_tile), (0, 0)), mode="wrap")
    across = -(-side // file_tile)

    def encode(cell: int) -> bytes:
        y, x = ((k * file_tile) % PERIOD for k in divmod(cell, across))
        return simplejpeg.encode_jpeg(np.ascontiguousarray(wrapped[y : y + file_tile, x : x + file_tile]), 85, "RGB", "420")

    with ThreadPoolExecutor(threads) as pool:
        pieces = list(pool.map(encode, range(across * across), chunksize=64))
    tifffile.imwrite(
        *(path, iter(pieces)),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(file_tile, file_tile),
        compression=7,
        metadata=None,
        photometric="ycbcr",
        subsampling=(2, 2),
    )
    return TiffSource(str(path), SourceOptions())


def make_decoders(device: torch.device, options: str) -> dict[str, StreamDecoder]:
    """Contestants that this machine has; what is missing is said on the way."""
    if device.type != "cuda":
        return {"libjpeg-turbo": CpuDecoder(device)}
    makers: dict[str, Callable[[], StreamDecoder]] = {
        "nvimagecodec": lambda: NvImageCodecDecoder(device),
        "nvimagecodec-cuda": lambda: NvImageCodecDecoder(device, hardware=False),
        "nvimagecodec-gpu-huffman": lambda: NvImageCodecDecoder(
            device, hardware=False, options="nvjpeg_cuda_decoder:hybrid_huffman_threshold=0"
        ),
        "torchvision": lambda: TorchvisionDecoder(device),
    }
    if options:
        makers["nvimagecodec-options"] = lambda: NvImageCodecDecoder(device, options=options)
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ConfigError, ImportError, RuntimeError) as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def measure_agreement(decoder: StreamDecoder, texture: np.ndarray) -> dict[str, Any]:
    """For each coding, the share of samples within 1 grey level of libjpeg-turbo's, and the largest difference."""
    crops = [np.ascontiguousarray(texture[k * 97 : k * 97 + h, k * 61 : k * 61 + w]) for k in range(8) for h, w in ((256, 256), (131, 77))]
    streams = {way: [simplejpeg.encode_jpeg(c, 85, "RGB", way) for c in crops] for way in ("420", "422", "444")}
    streams["grey"] = [simplejpeg.encode_jpeg(np.ascontiguousarray(c[..., :1]), 85, "GRAY", "Gray") for c in crops]
    try:
        import imagecodecs

        plain = JpegDecoder.from_tables(None, rgb=True, height=256, width=256, buffers=ThreadBuffers())
        streams["rgb"] = [plain.stream(imagecodecs.jpeg8_encode(c, 85, colorspace="rgb", outcolorspace="rgb"))[0] for c in crops]
    except ImportError:
        pass
    out: dict[str, Any] = {}
    for way, coded in streams.items():
        try:
            found, failures = decoder.decode(coded, 256, 256)
        except (RuntimeError, ValueError) as error:
            out[way] = {"error": str(error).splitlines()[0]}
            continue
        apart = np.concatenate(
            [np.abs(found[k].cpu().numpy()[:h, :w].astype(int) - e).ravel() for k, h, w, e in _expected(coded, failures)]
        )
        out[way] = {"within_1": float((apart <= 1).mean()), "largest": int(apart.max()), "failed": len(failures)}
    return out


def _expected(coded: list[bytes], failures: dict[int, str]) -> list[tuple[int, int, int, np.ndarray]]:
    pixels = [simplejpeg.decode_jpeg(stream, "RGB", fastdct=False, fastupsample=False) for stream in coded]
    return [(k, *p.shape[:2], p) for k, p in enumerate(pixels) if k not in failures]


def measure_damage(decoder: StreamDecoder, texture: np.ndarray, flips: int = 200) -> dict[str, int]:
    """How streams with one byte changed are judged, and how many sound neighbours in the same batch fail or change."""
    rng = np.random.default_rng(1)
    good = simplejpeg.encode_jpeg(np.ascontiguousarray(texture[:256, :256]), 85, "RGB", "420")
    sound = simplejpeg.decode_jpeg(good, "RGB", fastdct=False, fastupsample=False).astype(int)
    told = {"refused_by_host": 0, "refused_here": 0, "refused_by_host_only": 0, "neighbours_harmed": 0}
    for _ in range(flips):
        broken = bytearray(good)
        broken[int(rng.integers(2, len(good) - 2))] = int(rng.integers(256))
        found, failures = decoder.decode([good, bytes(broken), good], 256, 256)
        host = bool(CpuDecoder().decode([bytes(broken)], 256, 256)[1])
        told["refused_by_host"] += host
        told["refused_here"] += 1 in failures
        told["refused_by_host_only"] += host and 1 not in failures
        for k in (0, 2):
            told["neighbours_harmed"] += k in failures or bool((np.abs(found[k].cpu().numpy() - sound) > 1).mean() > 0.001)
    return told


def run(make_batches: Callable[[], Any], device: torch.device) -> float:
    """Seconds until all batches are made."""
    start = time.perf_counter()
    for _ in make_batches():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def make_contestants(source: TiffSource, decoders: dict[str, StreamDecoder], device: torch.device, chosen: argparse.Namespace, pool: Any):
    """For each contestant a function that makes all batches, and the number of tiles."""
    starts = np.arange(0, source.info.size.height - TILE + 1, TILE)
    y, x = (a.ravel().astype(np.int64) for a in np.meshgrid(starts, starts, indexing="ij"))
    shards = [slice(k, k + chosen.shard_tiles) for k in range(0, len(y), chosen.shard_tiles)]
    spec = ReadSpec(0, 1.0, TILE, 1.0)
    buffers = PixelBuffers()
    host = TileReader(source, spec, pool=pool, threads=chosen.threads, batch=BATCH, buffers=buffers)

    def read_host(copy: bool) -> Any:
        for shard in shards:
            for batch in host.read(y[shard], x[shard]):
                yield torch.from_numpy(batch.pixels).to(device) if copy else batch
                buffers.give(batch.pixels)

    def read_device(decoder: StreamDecoder | HostDecoder) -> Any:
        reader = DeviceTileReader(source, spec, decoder=decoder, pool=pool, threads=chosen.threads, batch=BATCH)
        for shard in shards:
            yield from reader.read(y[shard], x[shard])

    contestants: dict[str, Callable[[], Any]] = {"host-only": lambda: read_host(False), "host": lambda: read_host(True)}
    on_host = HostDecoder(device)
    contestants["host-gather"] = lambda: read_device(on_host)
    contestants |= {name: lambda decoder=decoder: read_device(decoder) for name, decoder in decoders.items()}
    return contestants, len(y)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16384, help="side of the slide in px")
    parser.add_argument("--file-tiles", type=int, nargs="+", default=[240, 256])
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-tiles", type=int, default=8192)
    parser.add_argument("--options", default="", help="options of nvImageCodec for one more contestant")
    parser.add_argument("--flips", type=int, default=200, help="damaged streams per decoder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoders, texture = make_decoders(device, chosen.options), make_texture()
    told: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "agreement": {name: measure_agreement(decoder, texture) for name, decoder in decoders.items()},
        "damage": {n: measure_damage(d, texture, chosen.flips) for n, d in decoders.items() if n != "torchvision"},  # fails whole batches
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.threads) as pool:
        for file_tile in chosen.file_tiles:
            source = write_slide(Path(folder) / f"{file_tile}.tif", texture, chosen.side, file_tile, chosen.threads)
            contestants, tiles = make_contestants(source, decoders, device, chosen, pool)
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            for number in range(chosen.rounds + 1):
                for name, make_batches in contestants.items():
                    took = run(make_batches, device)
                    if number:  # the first round warms up
                        seconds[name].append(took)
            rates = {name: tiles / statistics.median(taken) for name, taken in seconds.items()}
            told["rows"].append({"file_tile": file_tile, "tiles": tiles, "tiles_per_second": rates})
            source.close()
    if chosen.json:
        print(json.dumps(told, indent=1))
        return told
    print(told["device"])
    for name, ways in told["agreement"].items():
        print(f"{name}: " + "; ".join(f"{way} {found}" for way, found in ways.items()))
        print(f"{name}, one byte changed: {told['damage'].get(name)}")
    for row in told["rows"]:
        print(f"file tiles of {row['file_tile']} px, {row['tiles']} tiles of {TILE} px, tiles/s:")
        print("\n".join(f"  {name:>26} {rate:>10.0f}" for name, rate in row["tiles_per_second"].items()))
    return told


if __name__ == "__main__":
    main()
