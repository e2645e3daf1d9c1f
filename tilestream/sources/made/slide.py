"""`sample://he?width=&height=&seed=&mpp=`: a made slide for demos, benchmarks and tests, written once and then an ordinary file.

The file is a tiled JPEG pyramid with an Aperio description, which every reader of slides opens. Beside it lies a label image that
says which tissue is where (`histology.KINDS`).
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tilestream.config.local_files import user_cache
from tilestream.errors import InputError
from tilestream.sources.made.histology import KINDS, LABEL_CELL, choose_period, make_labels, make_texture, shrink_texture

VERSION = 2
"""Of the generator; part of the file name, so that a new one never meets an old file."""

TILE = 256
"""Side of a file tile, px."""

STEP = 4
"""Downsample from one level to the next."""

SMALLEST_LEVEL = 1024
"""Longest side, px, at which no further level is made."""

QUALITY = 85
LARGEST_SIDE = 200_000
BYTES_A_PIXEL = 0.5
"""Generous size of the file, for the check of free space; seen is 0.11."""


@dataclass(frozen=True)
class SampleSpec:
    """What a sample address asks for."""

    width: int = 8192
    """Level-0 px."""
    height: int = 6144
    """Level-0 px."""
    seed: int = 0
    mpp: float = 0.25
    """µm per level-0 px."""

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if not 1 <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} must be 1 to {LARGEST_SIDE} px, got {value}")
        if not 0.05 <= self.mpp <= 4:
            raise ValueError(f"mpp must be 0.05 to 4 µm/px, got {self.mpp}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    @property
    def stem(self) -> str:
        """File name without suffix; holds everything that the content depends on."""
        return f"he_{self.width}x{self.height}_seed{self.seed}_mpp{self.mpp:g}_v{VERSION}"

    @property
    def factors(self) -> list[int]:
        """Downsample of each level."""
        factors = [1]
        while max(self.width, self.height) / factors[-1] > SMALLEST_LEVEL:
            factors.append(factors[-1] * STEP)
        return factors


def ensure_sample(address: str) -> Path:
    """Path of the slide that a sample address means; made at the first call, which takes seconds for a small one.

    Memory bound: six textures of 12 MB, about 330 MB while they are made, one row of encoded tiles, and the label map (1 byte for 4096 px).

    Raises
    ------
    InputError
        The address has unknown or impossible parts, or the disk has no room.
    """
    spec = parse_sample(address)
    path = sample_folder() / f"{spec.stem}.svs"
    if not (path.exists() and path.with_suffix(".labels.png").exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, spec)
        _write(path, spec)
    return path


def drawn_sample(address: str) -> Path | None:
    """Path of the slide that a sample address means where it was made before; nothing is made. Raises InputError."""
    path = sample_folder() / f"{parse_sample(address).stem}.svs"
    return path if path.is_file() else None


def sample_labels(address: str) -> tuple[NDArray[np.uint8], int]:
    """(h, w) uint8 kind of tissue at each cell (an index into `histology.KINDS`), and the side of a cell in level-0 px."""
    path = ensure_sample(address).with_suffix(".labels.png")
    return np.asarray(Image.open(path)), LABEL_CELL


def parse_sample(address: str) -> SampleSpec:
    """The parts of a sample address, checked. Raises InputError."""
    parts = urlsplit(address)
    if parts.netloc != "he":
        raise InputError(f"{address}: the only sample is he. Write sample://he?width=16384&height=12288.")
    kinds = {"width": int, "height": int, "seed": int, "mpp": float}
    values: dict[str, float] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key not in kinds:
            raise InputError(f"{address}: {key!r} is unknown. A sample takes {', '.join(kinds)}.")
        try:
            values[key] = kinds[key](text)
        except ValueError as error:
            raise InputError(f"{address}: {key}={text} is not a number. Write e.g. {key}={'0.25' if key == 'mpp' else '8192'}.") from error
    try:
        return SampleSpec(**values)  # type: ignore[arg-type]  # each value has its key's type
    except ValueError as error:
        raise InputError(f"{address}: {error}.") from error


def sample_folder() -> Path:
    """Where samples are kept: TILESTREAM_SAMPLE_DIR, else the user's cache."""
    if chosen := os.environ.get("TILESTREAM_SAMPLE_DIR"):
        return Path(chosen)
    return user_cache("samples")


def _check_room(path: Path, spec: SampleSpec) -> None:
    needed, free = int(spec.width * spec.height * BYTES_A_PIXEL), shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"a sample of {spec.width} x {spec.height} px needs up to {needed / 1e9:.1f} GB in {path.parent}, {free / 1e9:.1f} GB are free. "
            "Set TILESTREAM_SAMPLE_DIR to a larger disk, or ask for a smaller one."
        )


def _write(path: Path, spec: SampleSpec) -> None:
    """Write the slide and its labels under other names, then give them theirs: two processes at once do no harm."""
    mark = f".{os.getpid()}-{threading.get_ident()}.part"
    part, labels_part = path.with_suffix(mark), path.with_suffix(f"{mark}.png")
    labels = make_labels(spec.height, spec.width, spec.seed)
    try:
        Image.fromarray(labels).save(labels_part)
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            period = choose_period(spec.height, spec.width, spec.mpp)
            textures = [make_texture(kind, spec.seed, spec.mpp, period) for kind in range(len(KINDS))]
            _write_pyramid(part, spec, labels, textures, pool)
        labels_part.replace(path.with_suffix(".labels.png"))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        labels_part.unlink(missing_ok=True)


def _write_pyramid(
    path: Path, spec: SampleSpec, labels: NDArray[np.uint8], textures: list[NDArray[np.uint8]], pool: ThreadPoolExecutor
) -> None:
    size = f"{spec.width}x{spec.height}"
    text = f"Aperio Image Library v12.0.0\r\n{size} [0,0 {size}] ({TILE}x{TILE}) JPEG/RGB Q={QUALITY}|AppMag = {round(10 / spec.mpp)}|MPP = {spec.mpp:g}"
    coding: dict[str, Any] = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2), "metadata": None, "software": False}
    levels = [_LevelPainter(spec, labels, textures, factor) for factor in spec.factors]
    big = spec.width * spec.height * BYTES_A_PIXEL > 2**31
    with tifffile.TiffWriter(path, bigtiff=big) as tif:
        for k, level in enumerate(levels):
            shape = (level.height, level.width, 3)
            tif.write(level.encoded(pool), shape=shape, dtype=np.uint8, tile=(TILE, TILE), description=text, **coding)
            if k == 0:
                thumbnail = levels[-1].whole()
                tif.write(thumbnail, rowsperstrip=16, description=text, compressionargs={"level": QUALITY}, **coding)


class _LevelPainter:
    """Tiles of one level, each from the label map and the textures at that level's scale; no level needs another."""

    def __init__(self, spec: SampleSpec, labels: NDArray[np.uint8], textures: list[NDArray[np.uint8]], factor: int) -> None:
        self.factor = factor
        self.height, self.width = math.ceil(spec.height / factor), math.ceil(spec.width / factor)
        self.rows, self.cols = math.ceil(self.height / TILE), math.ceil(self.width / TILE)
        self.labels = labels
        self.textures = [shrink_texture(texture, min(factor, 64)) for texture in textures]
        self.period = len(self.textures[0]) // TILE  # tiles after which a texture repeats
        self.whole_tiles: dict[tuple[int, int, int], bytes] = {}

    def encoded(self, pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """JPEG streams of all tiles, row-major; one row of them is in memory."""
        for row in range(self.rows):
            yield from list(pool.map(lambda col, row=row: self.encode(row, col), range(self.cols)))

    def encode(self, row: int, col: int) -> bytes:
        """One tile; tiles of a single kind are encoded once for each place in the texture."""
        kinds = self._kinds(row, col)
        first = int(kinds.flat[0])
        if (kinds != first).any():
            return _jpeg(self._paint(row, col, kinds))
        key = (first, row % self.period, col % self.period)
        if key not in self.whole_tiles:
            self.whole_tiles[key] = _jpeg(self._texture(first, row, col))
        return self.whole_tiles[key]

    def whole(self) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of the whole level: for the smallest one."""
        out = np.empty((self.rows * TILE, self.cols * TILE, 3), np.uint8)
        for row in range(self.rows):
            for col in range(self.cols):
                out[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE] = self._paint(row, col, self._kinds(row, col))
        return out[: self.height, : self.width]

    def _texture(self, kind: int, row: int, col: int) -> NDArray[np.uint8]:
        y, x = row % self.period * TILE, col % self.period * TILE
        return np.ascontiguousarray(self.textures[kind][y : y + TILE, x : x + TILE])

    def _kinds(self, row: int, col: int) -> NDArray[np.uint8]:
        """Labels under a tile with one cell more on each side, held at the image's border."""
        span = TILE * self.factor // LABEL_CELL
        y = np.arange(row * span - 1, (row + 1) * span + 1).clip(0, self.labels.shape[0] - 1)
        x = np.arange(col * span - 1, (col + 1) * span + 1).clip(0, self.labels.shape[1] - 1)
        kinds: NDArray[np.uint8] = self.labels[np.ix_(y, x)]
        return kinds

    def _paint(self, row: int, col: int, kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(TILE, TILE, 3): textures of the kinds, each with a soft share of the pixels around its cells."""
        present = np.unique(kinds)
        span = kinds.shape[0] - 2
        box = (1, 1, span + 1, span + 1)
        total, weights = np.zeros((TILE, TILE, 3), np.float32), np.zeros((TILE, TILE, 1), np.float32)
        for kind in present.tolist():
            share = Image.fromarray((kinds == kind).astype(np.float32)).resize((TILE, TILE), Image.Resampling.BILINEAR, box=box)
            # A steep ramp turns the blend of neighbouring cells into a border a few µm wide.
            weight = (
                np.clip((np.asarray(share) - 0.5) * 6 + 0.5, 1e-3, 1)[..., None]
                if self.factor < LABEL_CELL
                else np.asarray(share)[..., None]
            )
            total += weight * self._texture(kind, row, col)
            weights += weight
        return (total / weights + 0.5).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
    return data
