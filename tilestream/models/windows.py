"""Windows on the absolute token grid: packing the tokens that there are, and unpacking them again.

A token at (row, col) lies in window ((row + shift) // window, (col + shift) // window), whatever else is on the grid, so windows do
not depend on shards, bands or the order of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def pack_windows(tok_row: Tensor, tok_col: Tensor, window: int, shift: int = 0) -> Tensor:
    """Find the occupied windows of a set of tokens, and which token lies in which of their cells; empty windows are dropped.

    Parameters
    ----------
    tok_row, tok_col : (n,) int64
        Absolute grid indices, in any order; they may be negative.
    window : int
        Side of a window, tokens.
    shift : int
        Tokens by which windows begin before multiples of `window`.

    Returns
    -------
    cells : (w, window * window) int64
        Index of each cell's token, -1 where it is absent; `cells >= 0` is the key mask. Windows are in row-major order of their
        place, cells in row-major order within. On the device of `tok_row`.

    Raises
    ------
    ValueError
        Where two tokens have one place, or rows and columns differ in number.
    """
    if tok_row.shape != tok_col.shape or tok_row.ndim != 1:
        raise ValueError(f"Tokens need as many rows as columns, got {tuple(tok_row.shape)} and {tuple(tok_col.shape)}")
    row, col = tok_row.long() + shift, tok_col.long() + shift
    area = window * window
    if len(row) == 0:
        return row.new_empty(0, area)
    win_row = row.div(window, rounding_mode="floor")
    win_col = col.div(window, rounding_mode="floor")
    win_cols = win_col.max() - win_col.min() + 1
    key = (win_row - win_row.min()) * win_cols + (win_col - win_col.min())
    occupied, index = torch.unique(key, return_inverse=True)
    slot = index * area + row.remainder(window) * window + col.remainder(window)
    cells = slot.new_full((len(occupied) * area,), -1)
    cells[slot] = torch.arange(len(slot), device=slot.device)
    if int((cells >= 0).sum()) != len(slot):
        raise ValueError("Two tokens have the same row and column")
    packed: Tensor = cells.view(-1, area)
    return packed


def window_partition(tokens: Tensor, cells: Tensor) -> Tensor:
    """Gather tokens into windows; `window_unpartition` undoes it.

    Parameters
    ----------
    tokens : (n, d)
        In the order that `pack_windows` saw.
    cells : (w, window * window) int64
        From `pack_windows`, or some of its rows.

    Returns
    -------
    windows : (w, window * window, d)
        0 where a token is absent; such cells must be masked as keys, since a zero vector would take part in attention.
    """
    windows = tokens[cells.clamp(min=0)]
    return windows.masked_fill((cells < 0).unsqueeze(-1), 0)


def window_unpartition(windows: Tensor, cells: Tensor, tokens: Tensor) -> None:
    """Write windows (w, window * window, d) back to their places in `tokens` (n, d); absent cells are left out."""
    there = cells >= 0
    tokens[cells[there]] = windows[there].to(tokens.dtype)


def attend_windows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Attention among the tokens of each window.

    Packed windows are a batch to the fused kernel, so no mask is larger than they are. On an H200, 65,536 tokens in windows of 16, 12
    heads of 64 in bfloat16, this takes 0.17 ms where all tokens are there and 0.29 ms with a key mask; FlexAttention took 0.29 ms,
    `varlen_attn` 0.31 ms without and 0.59 ms with packing its input, and dense attention 28.6 ms.

    Parameters
    ----------
    q, k, v : (w, heads, window * window, dim / heads)
        Queries, keys and values.
    mask : (w, window * window) bool, optional
        True where there is a key; at least one in each window. None where all are there.
    bias : (heads, window * window, window * window), optional
        Added to the logits.

    Returns
    -------
    mixed : (w, heads, window * window, dim / heads)
    """
    added = None if mask is None else mask[:, None, None, :]
    if bias is not None:
        added = bias[None] if added is None else torch.where(added, bias[None], -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added)
