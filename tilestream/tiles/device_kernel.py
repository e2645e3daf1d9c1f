"""The Triton kernel behind `gather_tiles`; imported on CUDA alone, where torch brings Triton."""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["count", "cover", "height", "width", "image_height", "image_width", "rows", "cols"]
"""Numbers for whose kinds, such as multiples of 16, no kernels of their own are compiled: each takes as long as a thousand launches."""


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
def gather_rows(  # noqa: PLR0913, PLR0917
    arena: tl.tensor, slots: tl.tensor, starts: tl.tensor, tiles: tl.tensor, count: tl.tensor, cover: tl.tensor, height: tl.tensor,
    width: tl.tensor, image_height: tl.tensor, image_width: tl.tensor, rows: tl.tensor, cols: tl.tensor, white: tl.constexpr,
    block: tl.constexpr,
) -> None:  # fmt: skip
    """One row of one tile, byte by byte: program (tile, row); arguments as in `gather_tiles`, `block` the bytes of a row or more."""
    tile, row = tl.program_id(0), tl.program_id(1)
    top, left = tl.load(starts + tile), tl.load(starts + count + tile)
    byte = tl.arange(0, block)
    at_y, at_x = top + row, left + byte // 3
    wanted = byte < cover * 3
    inside = wanted & (at_y >= 0) & (at_x >= 0) & (at_y < image_height) & (at_x < image_width)
    cell = (tile * rows + at_y // height - tl.maximum(top, 0) // height) * cols + at_x // width - tl.maximum(left, 0) // width
    slot = tl.load(slots + cell, mask=inside, other=0)
    place = ((slot * height + at_y % height) * width + at_x % width) * 3 + byte % 3
    pixel = tl.load(arena + place, mask=inside, other=white)
    tl.store(tiles + (tile * cover + row).to(tl.int64) * cover * 3 + byte, pixel, mask=wanted)
