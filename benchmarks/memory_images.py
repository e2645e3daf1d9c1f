"""Images, weights and masks for `bench_memory`, each written once by a process or in blocks, so that writing leaves no mark on what is measured."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_KEPT: list[Path] = []


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Where the makers below put what they write."""
    folder.mkdir(parents=True, exist_ok=True)
    _KEPT.append(folder)
    try:
        yield
    finally:
        _KEPT.pop()


def sample(width: int, height: int) -> Callable[[Path], str]:
    """A made slide, JPEG, drawn before it is measured."""
    address = f"sample://he?width={width}&height={height}"

    def make(folder: Path) -> str:
        del folder
        os.environ["TILESTREAM_SAMPLE_DIR"] = str(_KEPT[-1] / "samples")
        subprocess.run([sys.executable, "-m", "tilestream", "inspect", address], check=True, capture_output=True)
        return address

    return make


def undrawn_sample(width: int, height: int) -> Callable[[Path], str]:
    """A made slide that the run itself draws."""

    def make(folder: Path) -> str:
        os.environ["TILESTREAM_SAMPLE_DIR"] = str(folder / "undrawn")
        return f"sample://he?width={width}&height={height}"

    return make


def _values(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Grey noise over a slope: it compresses a little, as images do."""
    noise = np.random.default_rng(seed).integers(0, 32, shape, np.uint16) + np.linspace(40, 180, shape[-2], dtype=np.uint16)[:, None]
    return (noise / np.float32(255)).astype(np.float32) if kind == "float32" else (noise * (16 if kind == "uint16" else 1)).astype(kind)


def tiff(kind: str, side: int, tile: int) -> Callable[[Path], str]:
    """A deflated RGB TIFF of one level in tiles of a side, or in strips where that is 0."""

    def make(folder: Path) -> str:
        del folder
        path = _KEPT[-1] / f"{kind}-{side}-{tile}.tif"
        if not path.exists():
            import tifffile

            size = tile or 256
            block = np.stack([_values((size, size), kind, channel) for channel in range(3)], -1)
            layout = {"tile": (tile, tile)} if tile else {"rowsperstrip": 64}
            part = path.with_suffix(".part.tif")
            with tifffile.TiffWriter(part) as tif:
                if tile:
                    data = (block for _ in range((-(-side // tile)) ** 2))
                else:
                    line = np.tile(block[:64], (1, side // size, 1))
                    data = (zlib.compress(np.ascontiguousarray(line), 1) for _ in range(side // 64))
                coding = {
                    "photometric": "rgb",
                    "compression": "deflate",
                    "resolution": (40000, 40000),
                    "resolutionunit": 3,
                    "metadata": None,
                }
                tif.write(data, shape=(side, side, 3), dtype=block.dtype, **layout, **coding)
            part.rename(path)
        return str(path)

    return make


def zarr(kind: str, channels: int, side: int, chunk: int, *, one_a_chunk: bool = False) -> Callable[[Path], str]:
    """A Zarr array (c, y, x) in chunks of all channels, or of one."""

    def make(folder: Path) -> str:
        del folder
        path = _KEPT[-1] / f"{kind}-{channels}x{side}-{chunk}{'-single' if one_a_chunk else ''}.zarr"
        if not path.exists():
            import zarr as library

            deep = 1 if one_a_chunk else channels
            array = library.create_array(
                path, shape=(channels, side, side), chunks=(deep, chunk, chunk), dtype=kind, dimension_names=["c", "y", "x"]
            )
            block = _values((deep, chunk, chunk), kind, 0)
            for c in range(0, channels, deep):
                for y in range(0, side, chunk):
                    for x in range(0, side, chunk):
                        array[c : c + deep, y : y + chunk, x : x + chunk] = block
        return str(path)

    return make


def _by_a_child(path: Path, code: str) -> str:
    """A file that a process of its own writes: models leave their pages behind."""
    if not path.exists():
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)
    return str(path)


def context_weights(folder: Path, dim: int, depth: int) -> str:
    """Weights of a context."""
    del folder
    code = (
        "import sys, torch; from tilestream.models.context import ContextTransformer\n"
        f"torch.save(ContextTransformer({dim}, depth={depth}, heads=8, window=8).state_dict(), sys.argv[1])"
    )
    return _by_a_child(_KEPT[-1] / f"context-{dim}-{depth}.pth", code)


def pool_weights(folder: Path, dim: int, hidden: int) -> str:
    """Weights of a gated attention, float32."""
    del folder
    code = (
        "import sys, torch; from tilestream.models.pooling import GatedAttentionPool\n"
        f"state = GatedAttentionPool({dim}, hidden={hidden}).state_dict()\n"
        "torch.save({key: value.float() for key, value in state.items()}, sys.argv[1])"
    )
    return _by_a_child(_KEPT[-1] / f"pool-{dim}-{hidden}.pth", code)


def vit_weights(folder: Path) -> str:
    """Weights of ViT-B/16."""
    del folder
    code = "import sys, torch; from tilestream.models.vit import vit_base_patch16_224\ntorch.save(vit_base_patch16_224().state_dict(), sys.argv[1])"
    return _by_a_child(_KEPT[-1] / "vit-base.pth", code)


def geojson(folder: Path, mib: int) -> str:
    """Outlines of about a thousand corners each, so many MiB of them."""
    del folder
    path = _KEPT[-1] / f"mask-{mib}.geojson"
    if not path.exists():
        angle = np.linspace(0, 2 * np.pi, 1000)
        rng = np.random.default_rng(0)
        with path.open("w") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            mark = ""
            while file.tell() < mib * 1024**2:
                y, x, radius = rng.uniform(0, 8192), rng.uniform(0, 8192), rng.uniform(20, 400)
                ring = np.round(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], -1), 2).tolist()
                shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
                file.write(f"{mark}{json.dumps({'type': 'Feature', 'properties': {}, 'geometry': shape})}")
                mark = ","
            file.write("]}")
    return str(path)
