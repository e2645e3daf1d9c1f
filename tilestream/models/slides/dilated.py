"""Dilated attention (Ding et al. 2023, arXiv:2307.02486): a sum of sparse attentions over segments of the sequence, each wider and sparser than the one before.

In a branch of segment length w and ratio r, the sequence is cut into segments of w tokens and the heads into r groups; group g sees, in each
segment, the tokens g, g + r, g + 2 r, ... Branches are mixed by the softmax of their log-sum-exps. Queries pass in chunks, so that logits never
are more than `CHUNK_VALUES`, and no branch holds more than one of these at once.

What the published module does at the edges is kept, for released weights were trained with it: a segment is padded with zero queries, keys and
values to a multiple of the ratio, and the last one to the length of the others; the zero keys are not masked, so each adds exp(0) to the sum of
weights. Where w is no multiple of r and there are several segments, what comes of a segment is placed behind that of the one before it *with* its
padding, so that later segments are displaced by it. With the lengths of GigaPath that is so beyond 185,363 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tilestream.models.slides.specs import CHUNK_VALUES, CUDA_CHUNK_VALUES, Branches

_ABSENT = -1e8
"""Log-sum-exp of a token that a branch does not see, as published; one that is exactly 0 becomes this as well."""


class Mixture:
    """What the branches of one head have come to: (n, d) sums and (n,) greatest log-sum-exp and weight of each token."""

    def __init__(self, out: Tensor, branches: int) -> None:
        self.out = out.zero_()
        self.top = out.new_full((len(out),), _ABSENT)
        self.weight = out.new_full((len(out),), float(branches))  # of branches that have not seen the token

    def rows(self, start: int, end: int, step: int = 1, segment: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Views of some tokens as (segments, tokens); with `segment`, of each segment of that length those from `start` on."""
        parts = []
        for whole in (self.out, self.top, self.weight):
            part = whole[:end].unflatten(0, (-1, segment)) if segment else whole[:end][None]
            parts.append(part[:, start::step])
        return parts[0], parts[1], parts[2]

    def finish(self) -> None:
        """Turn sums into means."""
        self.out /= self.weight[:, None]


def dilated_attention(query: Tensor, key: Tensor, value: Tensor, head: int, heads: int, branches: Branches, out: Tensor) -> None:
    """The attention of one head into `out`.

    Memory bound: chunks of logits, the rows that one branch sees of `query`, `key` and `value`, and two numbers a token.

    Parameters
    ----------
    query, key, value : (n, d)
        Of the head; queries are scaled.
    head, heads : int
        Number of the head, and how many there are.
    branches : Branches
        Of all heads.
    out : (n, d)
        Filled; rows may be strided.
    """
    mixed, n = Mixture(out, len(branches.segments)), len(query)
    for length, ratio in branches:
        segment, offset = min(length, n), head // (heads // ratio)
        kept = -(-segment // ratio)  # tokens of a group in a segment, its padding among them
        if segment % ratio and segment < n:
            for number in range(-(-n // segment)):
                start, end = number * segment, min((number + 1) * segment, n)
                seen = [part[None, start + offset : end : ratio] for part in (query, key, value)]
                first = number * kept * ratio + offset
                target = mixed.rows(first, min((number + 1) * kept * ratio, n), ratio)
                _add(target, seen, kept)
            continue
        whole = n // segment * segment
        parts = [part[:whole].unflatten(0, (-1, segment))[:, offset::ratio] for part in (query, key, value)]
        _add(mixed.rows(offset, whole, ratio, segment), parts, kept)
        if whole < n:
            rest = [part[None, whole + offset :: ratio] for part in (query, key, value)]
            _add(mixed.rows(whole + offset, n, ratio), rest, kept)
    mixed.finish()


def _add(target: tuple[Tensor, Tensor, Tensor], seen: list[Tensor], kept: int) -> None:
    """Attention within segments, from their (f, m, d) queries, keys and values and `kept` - m zero ones, into the rows that it is for, as far as there are any."""
    query, key, value = seen
    count, wanted = key.shape[1], target[0].shape[1]
    if wanted == 0:
        return
    budget = CHUNK_VALUES if query.device.type == "cpu" else CUDA_CHUNK_VALUES
    many = max(1, budget // max(1, count * count))  # segments at once
    rows = max(1, min(wanted, budget // max(1, count)))  # queries at once
    for first in range(0, len(query), many):
        part = slice(first, first + many)
        keys, values = key[part].contiguous(), value[part].contiguous()
        for start in range(0, wanted, rows):
            chunk = slice(start, min(start + rows, wanted))
            asked = query[part, chunk]
            if asked.shape[1] < chunk.stop - start:  # padding asks as well
                asked = torch.nn.functional.pad(asked, (0, 0, 0, chunk.stop - start - asked.shape[1]))
            _merge(tuple(each[part, chunk] for each in target), *_attend(asked, keys, values, kept - count))


def _attend(query: Tensor, key: Tensor, value: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
    """(f, c, d) attention of (f, c, d) queries to (f, m, d) keys and so many zero keys, and its (f, c) log-sum-exp."""
    if key.shape[1] == 0:
        return torch.zeros_like(query), query.new_full(query.shape[:2], float(zeros)).log_()
    logits = query @ key.transpose(1, 2)  # (f, c, m)
    top = logits.amax(dim=2)
    if zeros:
        top.clamp_(min=0)
    weights = logits.sub_(top[..., None]).exp_()
    total = weights.sum(dim=2)
    if zeros:
        total += zeros * torch.exp(-top)
    return (weights @ value).div_(total[..., None]), top + total.log_()


def _merge(target: tuple[Tensor, ...], found: Tensor, lse: Tensor) -> None:
    """Add what a branch found for some tokens, one of `len(branches)` that may have seen them."""
    out, top, weight = target
    lse = lse.masked_fill(lse == 0, _ABSENT)
    best = torch.maximum(top, lse)
    before, own, absent = torch.exp(top - best), torch.exp(lse - best), torch.exp(_ABSENT - best)
    out.mul_(before[..., None]).add_(found * own[..., None])
    weight.mul_(before).add_(own - absent)
    top.copy_(best)
