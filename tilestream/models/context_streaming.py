"""Two ways to run a `ContextTransformer` over a grid that does not fit into memory, and why both give what the whole grid gives.

A layer mixes the tokens of one window, and windows sit on the absolute grid, so a token's result in a layer needs the tokens of its own
window and nothing else. Odd layers shift windows by half. Seen along one axis, for windows of 4 and three layers:

    layer 0    |0 1 2 3|4 5 6 7|8 9 . .|        windows start at multiples of 4
    layer 1    0 1|2 3 4 5|6 7 8 9|. .          shifted by 2
    layer 2    |0 1 2 3|4 5 6 7|8 9 . .|        as layer 0

What do tokens 4 to 7 depend on in the end? In layer 2 on each other; in layer 1 on 2 to 9; in layer 0 on 0 to 11. Each pair of layers
reaches one window further on either side: the **halo** of L layers is `window * (L // 2)`.

*Halo shards* read the tokens of a rectangle and its halo, and after each layer drop the rim that later layers do not need:

    rrrrrrrrrrrr    read, layer 0
    ..mmmmmmmm..    what layer 1 needs
    ....wwww....    what layer 2 needs: the shard itself, written

Tokens of the halo are computed again by every shard that needs them, and shards need nothing of each other: one task each.

*Row bands* pass over the grid once, from top to bottom. Layer 0 gets rows 0 to 3, a whole line of windows, and gives them on; layer 1 can
finish rows 0 and 1 only, since 2 and 3 share windows with rows that are not there yet, and holds them back. So it goes on through the layers:
each but the first holds `window / 2` rows, `(L - 1) * window / 2` in all, the **lag** between rows in and rows out. Nothing is computed twice.

Why the results are the same bit for bit (float32, CPU): every window is computed from the same tokens in the same places, in chunks of one
fixed shape, so no matrix product can tell which other windows it is computed with; norms and MLPs see one token at a time.

Windows: Swin (Liu et al. 2021, arXiv:2103.14030), without its cyclic shift: at the border of the image, windows are cut off instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tilestream.models.context import ContextTransformer


@dataclass(frozen=True)
class TokenBand:
    """Tokens of some rows of the grid; those that are absent are not listed."""

    tokens: Tensor
    """(n, dim)."""
    tok_row: Tensor
    """(n,) int64, ascending."""
    tok_col: Tensor
    """(n,) int64."""
    upto: int
    """Every token of rows below this one has been given by now, in this band or one before it."""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.tok_row) == len(self.tok_col):
            raise ValueError(f"a band has {len(self.tokens)} tokens, {len(self.tok_row)} rows and {len(self.tok_col)} columns")


@dataclass(frozen=True)
class Rect:
    """Rows and columns of the token grid, ends excluded."""

    row: int
    col: int
    row_end: int
    col_end: int

    def holds(self, tok_row: Tensor, tok_col: Tensor) -> Tensor:
        """(n,) bool: which places lie in the rectangle."""
        return (tok_row >= self.row) & (tok_row < self.row_end) & (tok_col >= self.col) & (tok_col < self.col_end)


class RowBands:
    """The whole transformer as a chain of generators, one a layer, over bands of token rows from top to bottom.

    Order
    -----
    Bands come out in the order of rows; a band's tokens are in row-major order where they came so.

    Memory bound
    ------------
    Between bands, the layers together hold at most `model.lag` rows of tokens beside the rows of the band on its way; where bands end at
    multiples of the window, exactly `window / 2` rows for each layer but the first (`pending_rows`, and the greatest seen, `most_pending`).
    """

    def __init__(self, model: ContextTransformer, stride_um: float | None) -> None:
        self.model, self.stride_um = model, stride_um
        self._held: list[int] = [0] * model.depth
        self.most_pending = 0

    @property
    def pending_rows(self) -> int:
        """Rows of the grid between what went into a layer and what came out of it, over all layers."""
        return sum(self._held)

    def run(self, bands: Iterable[TokenBand]) -> Iterator[TokenBand]:
        """Mixed bands from bands; the same tokens, in bands that end elsewhere. Empty bands may be among them.

        Raises
        ------
        ValueError
            Bands go back up the grid.
        """
        chain: Iterator[TokenBand] = self._encode(bands)
        for layer in range(self.model.depth):
            chain = self._mix(layer, chain)
        for band in chain:
            finished = [TokenBand(self.model.finish(band.tokens), band.tok_row, band.tok_col, band.upto)]
            del band
            yield finished.pop()

    def _encode(self, bands: Iterable[TokenBand]) -> Iterator[TokenBand]:
        reached = None
        for band in bands:
            if reached is not None and (band.upto < reached or (len(band.tok_row) and int(band.tok_row[0]) < reached)):
                raise ValueError(f"a band up to row {band.upto} comes after one up to row {reached}; bands go from top to bottom")
            reached = band.upto
            encoded = [
                TokenBand(self.model.encode(band.tokens, band.tok_row, band.tok_col, self.stride_um), band.tok_row, band.tok_col, band.upto)
            ]
            del band
            yield encoded.pop()

    def _mix(self, layer: int, bands: Iterator[TokenBand]) -> Iterator[TokenBand]:
        """One layer: rows are held until the windows that they lie in are complete."""
        window, shift = self.model.window, self.model.layer_shift(layer)
        held: TokenBand | None = None
        for band in bands:
            band = _join(held, band)  # noqa: PLW2901  # what was held belongs to it
            complete = (band.upto + shift) // window * window - shift
            self._note(layer, band.upto - complete)
            ready, held = _split(band, complete)
            mixed = [self._apply(layer, ready)]
            del band, ready  # a generator's names live on while the layers below it work
            yield mixed.pop()
        if held is not None:
            self._note(layer, 0)
            yield self._apply(layer, TokenBand(held.tokens, held.tok_row, held.tok_col, held.upto))

    def _apply(self, layer: int, band: TokenBand) -> TokenBand:
        if len(band.tokens) == 0:
            return band
        return TokenBand(self.model.mix(layer, band.tokens, band.tok_row, band.tok_col), band.tok_row, band.tok_col, band.upto)

    def _note(self, layer: int, rows: int) -> None:
        self._held[layer] = rows
        self.most_pending = max(self.most_pending, self.pending_rows)


def input_rects(model: ContextTransformer, rect: Rect) -> list[Rect]:
    """What each layer must be given, and last `rect` itself: (depth + 1,) rectangles, each within the one before."""
    rects = [rect]
    for layer in reversed(range(model.depth)):
        window, shift, inner = model.window, model.layer_shift(layer), rects[0]
        low = [(start + shift) // window * window - shift for start in (inner.row, inner.col)]
        high = [-(-(end + shift) // window) * window - shift for end in (inner.row_end, inner.col_end)]
        rects.insert(0, Rect(low[0], low[1], high[0], high[1]))
    return rects


def mix_rect(
    model: ContextTransformer, rect: Rect, read: Callable[[Rect], tuple[Tensor, Tensor, Tensor]], stride_um: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixed tokens of a rectangle, from its own tokens and those of its halo.

    Parameters
    ----------
    model : ContextTransformer
        On the device of the tokens.
    rect : Rect
        Any rectangle; it need not lie on windows.
    read : callable
        From a rectangle to the tokens in it, (n, dim), and their rows and columns, (n,) int64 each.
    stride_um : float or None
        Step of the grid in µm; None where mpp is unknown.

    Returns
    -------
    tokens, tok_row, tok_col : (m, dim), (m,), (m,)
        In the order in which `read` gave them.
    """
    rects = input_rects(model, rect)
    tokens, tok_row, tok_col = read(rects[0])
    tokens = model.encode(tokens, tok_row, tok_col, stride_um)
    for layer, needed in enumerate(rects[1:]):
        if len(tokens):
            tokens = model.mix(layer, tokens, tok_row, tok_col)
        keep = needed.holds(tok_row, tok_col)
        tokens, tok_row, tok_col = tokens[keep], tok_row[keep], tok_col[keep]
    return model.finish(tokens), tok_row, tok_col


def _join(first: TokenBand | None, second: TokenBand) -> TokenBand:
    if first is None or len(first.tokens) == 0:
        return second
    tokens = torch.cat([first.tokens, second.tokens])
    return TokenBand(tokens, torch.cat([first.tok_row, second.tok_row]), torch.cat([first.tok_col, second.tok_col]), second.upto)


def _split(band: TokenBand, row: int) -> tuple[TokenBand, TokenBand]:
    """The tokens of rows below `row`, and a copy of the others, which would keep the whole band alive as a view."""
    cut = int(torch.searchsorted(band.tok_row, row))
    above = TokenBand(band.tokens[:cut], band.tok_row[:cut], band.tok_col[:cut], row)
    return above, TokenBand(band.tokens[cut:].clone(), band.tok_row[cut:].clone(), band.tok_col[cut:].clone(), band.upto)
