"""Where the patches of a dense model lie, which output pixels each of them owns, and how these are put together to blocks.

Patches lie on an absolute grid. Patch (row, col) owns its *core*, which begins at `(row * step, col * step)`, and reads a margin beyond it on
every side; outside the image everything is white. Cores meet, so that every pixel of the image has one owner:

    |mmmm|cccccccccccc|mmmm|            patch 0
                 |mmmm|cccccccccccc|mmmm|            patch 1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SIDE = 2048
"""Side of a block that is aimed at, output px."""

STRIPE_CORES = 24
"""Cores across a stripe, about: with one patch more on either side, a twelfth is computed twice."""

UNIT_BYTES = 256 * 1024**2
"""Bytes of a unit's output that are not to be exceeded, as long as it has a block."""

CHUNK_SIDE = 512
"""Side of a chunk of a block that is aimed at, output px."""


@dataclass(frozen=True)
class PatchGrid:
    """The patches of one image for one model."""

    height: int
    """The image at the resolution of the patches, px."""
    width: int
    size: int
    """Side of a patch, px."""
    margin: int
    """Border of a patch that its neighbours own, px: half of the overlap."""
    stride: int = 1
    """Px a side that become one output px."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size, self.stride) < 1:
            raise ValueError(f"PatchGrid sides and stride must be at least 1 px, got {self}")
        if not 0 <= 4 * self.margin <= self.size or self.step < 1:
            raise ValueError(f"PatchGrid margin must be at most a quarter of the size, so that two patches overlap at most, got {self}")
        if self.step % self.stride or self.margin % self.stride:
            raise ValueError(f"PatchGrid step and margin must be multiples of the stride, got {self}")

    @property
    def step(self) -> int:
        """From core to core, px."""
        return self.size - 2 * self.margin

    @property
    def rows(self) -> int:
        """Rows of cores that cover the image."""
        return -(-self.height // self.step)

    @property
    def cols(self) -> int:
        """Columns of cores that cover the image."""
        return -(-self.width // self.step)

    @property
    def core(self) -> int:
        """Side of a core, output px."""
        return self.step // self.stride

    @property
    def border(self) -> int:
        """The margin, output px."""
        return self.margin // self.stride

    @property
    def side(self) -> int:
        """Side of a patch, output px."""
        return self.size // self.stride

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the output."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def px_origins(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """First px of the patches of rows (or columns), which for the first ones lies outside the image."""
        return index * self.step - self.margin


@dataclass(frozen=True)
class BlockGrid:
    """How the output is cut: blocks of some cores a side, which are objects of the store, and units, which are some blocks side by side.

    A stripe is a column of units. Units are numbered down the stripes: whoever computes consecutive ones keeps what the next one needs.
    """

    patches: PatchGrid
    cores: int
    """Cores along a side of a block."""
    blocks: int
    """Blocks across a unit."""

    def __post_init__(self) -> None:
        if self.cores < 1 or self.blocks < 1:
            raise ValueError(f"BlockGrid blocks must have at least 1 core, and units at least 1 block, got {self}")

    @classmethod
    def of(cls, patches: PatchGrid, pixel_bytes: int = 1) -> BlockGrid:
        """Blocks of about `BLOCK_SIDE` output px, half of that where a pixel has several bytes, and units of about `STRIPE_CORES` cores across."""
        side = BLOCK_SIDE if pixel_bytes == 1 else BLOCK_SIDE // 2
        cores = max(1, round(side / patches.core))
        most = max(1, UNIT_BYTES // (pixel_bytes * (cores * patches.core) ** 2))
        across = -(-patches.cols // cores)
        stripes = max(1, round(across * cores / STRIPE_CORES), -(-across // most))
        return cls(patches, cores, -(-across // stripes))

    @property
    def side(self) -> int:
        """Side of a block, output px."""
        return self.cores * self.patches.core

    @property
    def chunk(self) -> int:
        """Side of a chunk: the divisor of a block's that is nearest to `CHUNK_SIDE`."""
        divisors = [k for k in range(1, self.side + 1) if self.side % k == 0]
        return min(divisors, key=lambda k: (abs(k - CHUNK_SIDE), k))

    @property
    def rows(self) -> int:
        """Rows of blocks, which are those of units."""
        return -(-self.patches.rows // self.cores)

    @property
    def cols(self) -> int:
        """Columns of blocks."""
        return -(-self.patches.cols // self.cores)

    @property
    def stripes(self) -> int:
        """Columns of units."""
        return -(-self.cols // self.blocks)

    @property
    def units(self) -> int:
        """Number of units."""
        return self.rows * self.stripes

    def place(self, unit: int) -> tuple[int, int]:
        """Stripe and row of a unit."""
        return divmod(unit, self.rows)

    def blocks_of(self, unit: int) -> list[tuple[int, int]]:
        """(row, col) of the blocks of a unit."""
        stripe, row = self.place(unit)
        return [(row, col) for col in range(stripe * self.blocks, min((stripe + 1) * self.blocks, self.cols))]

    def cores_of(self, units: range) -> CoreRect:
        """The cores of consecutive units of one stripe."""
        (stripe, first), (last_stripe, last) = self.place(units[0]), self.place(units[-1])
        assert stripe == last_stripe, "units of a run are of one stripe"
        across = self.cores * self.blocks
        return CoreRect(
            first * self.cores,
            min((last + 1) * self.cores, self.patches.rows),
            stripe * across,
            min((stripe + 1) * across, self.patches.cols),
        )

    def runs(self, units: range) -> list[range]:
        """Consecutive units cut where a stripe ends."""
        starts = [units.start, *(k for k in range(units.start + 1, units.stop) if k % self.rows == 0)]
        return [range(a, b) for a, b in zip(starts, [*starts[1:], units.stop], strict=True) if a < b]


@dataclass(frozen=True)
class CoreRect:
    """A rectangle of cores; ends are excluded."""

    row: int
    row_end: int
    col: int
    col_end: int

    def holds(self, row: int, col: int) -> bool:
        """Whether a core is one of it."""
        return self.row <= row < self.row_end and self.col <= col < self.col_end

    def needed(self, kept: NDArray[np.bool_], ring: int) -> NDArray[np.bool_]:
        """(rows, cols) the kept patches that touch a kept core of the rectangle, up to `ring` cores away."""
        wanted = np.zeros_like(kept)
        inside = (slice(self.row, self.row_end), slice(self.col, self.col_end))
        wanted[inside] = kept[inside]
        for axis in (0, 1) if ring else ():
            wanted |= _shifted(wanted, 1, axis) | _shifted(wanted, -1, axis)
        return wanted & kept


def _shifted(mask: NDArray[np.bool_], by: int, axis: int) -> NDArray[np.bool_]:
    """The mask moved along an axis, with nothing behind it."""
    out = np.roll(mask, by, axis)
    edge: list[slice | int] = [slice(None)] * mask.ndim
    edge[axis] = 0 if by > 0 else -1
    out[tuple(edge)] = False
    return out
