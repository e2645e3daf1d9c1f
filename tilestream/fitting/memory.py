"""The memory of a fit before it learns, as a sum of what each part holds; it does not follow the number of tiles."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from tilestream.buffers import gib
from tilestream.config.fit_schema import FitConfig
from tilestream.fitting.colour import colour_bytes
from tilestream.fitting.targets import Cases
from tilestream.fitting.training.bags import BAG, BLOCK, MOST
from tilestream.fitting.training.features import THREADS
from tilestream.fitting.training.slide_models import SETTINGS
from tilestream.stages.hardware import resident_memory

COPIES = 6
"""Times that the vectors of drawn tiles are held while a head learns: as read, and in float64 as they are standardised and multiplied."""

LIBRARIES = 256 * 1024**2
"""What is loaded when a head first learns: solvers, gradients, pictures; and slack."""

DEVICE_LIBRARIES = 1024**3
"""Host memory of what CUDA loads when it is first used."""

LABEL = 2
"""Bytes of the class of a tile."""

CLASSES = 16
"""Classes of tiles where they are not known yet; each costs little."""

ROUNDS_HELD = 16
"""Arrays of the size of the predictions that an evaluation holds at once."""


@dataclass(frozen=True)
class FitMemory:
    """An upper bound of resident memory, part by part, in bytes."""

    program: int
    """Interpreter, libraries, and the slides as they are opened: measured, and what is loaded later."""
    vectors: int
    """Of drawn tiles, and their copies; of slides, their pooled vectors, and bags where all are held."""
    reading: int
    """Blocks that are read ahead, and the chunks that they come from."""
    learning: int
    """A batch of bags with its activations, weights and what steps need beside them; a block while whole slides are judged."""
    judging: int
    """Labels of tiles, predictions with what intervals take, and the colours of a thumbnail."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.program + self.vectors + self.reading + self.learning + self.judging

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in asdict(self).items())
        return f"memory: {gib(self.total)} projected ({parts})"


def most_drawn(config: FitConfig, dim: int) -> int:
    """Tiles that a head of tiles learns from at most."""
    return max(1000, config.memory_limit // (dim * 4 * COPIES))


def project_memory(config: FitConfig, cases: Cases) -> FitMemory:
    """The memory of a fit on these cases, from sizes alone."""
    array = cases.slides[0].vectors(config.head.input)
    dim, chunk = int(array.shape[1]), int(array.chunks[0]) * int(array.shape[1]) * 4
    tiles = sum(slide.layout.tiles for slide in cases.slides)
    outputs = len(cases.classes) or len(config.target.classes) or CLASSES
    cuda = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    colours = max(map(colour_bytes, cases.slides))
    if config.head.kind == "classify":
        drawn = min(tiles, most_drawn(config, dim))
        vectors, samples = drawn * dim * 4 * COPIES, drawn
        learning, labels = 64 * drawn + 4 * dim * 4096, LABEL * tiles
    else:
        vectors, learning = _of_bags(config, cases, dim, array.dtype, tiles, outputs)
        samples, labels = len(cases.slides), tiles // 8
    return FitMemory(
        program=resident_memory() + LIBRARIES + (DEVICE_LIBRARIES if cuda and config.head.kind == "slide" else 0),
        vectors=vectors,
        reading=(THREADS + 2) * (BLOCK * dim * 4 + 2 * chunk),
        learning=learning,
        judging=labels + samples * 8 * (outputs + 4) * ROUNDS_HELD + colours,
    )


def _of_bags(config: FitConfig, cases: Cases, dim: int, dtype: np.dtype[np.floating], tiles: int, outputs: int) -> tuple[int, int]:
    """Bytes of vectors that are held, and of learning, for a head of slides."""
    if config.head.model in ("mean", "max"):
        return len(cases.slides) * dim * 8 * COPIES, outputs * dim * 8 * 64  # the memory of the steps taken
    settings = {**SETTINGS[config.head.model], **config.head.args}
    width = int(settings.get("hidden", settings.get("width", 0)))
    held = min(tiles * dim * dtype.itemsize, config.memory_limit) + max(slide.layout.tiles for slide in cases.slides) * 8 * THREADS
    weights = (dim * width + 16 * width * width * int(settings.get("depth", 1)) + width * outputs) * 4
    row = 4 * (4 * dim + 24 * width * int(settings.get("depth", 1)))
    learning = 8 * weights + max(int(settings["batch"]) * BAG * row, BLOCK * (8 * dim + 32 * width)) + MOST * outputs * 8
    return held, learning
