"""How a context learns: tokens are hidden or blurred, and told from those around them.

Of each batch a part of the tokens is hidden and as many are blurred with the difference of two other tokens; both are to be told as they were.
Blocks are turned, mirrored and moved against the windows, so that no direction and no place of a window is special.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tilestream.config.fit_schema import Masked
from tilestream.fitting.masked.blocks import Block, TokenBlocks
from tilestream.models.context import ContextTransformer

BATCH = 512
"""Tokens a step, about."""

SEEN = 3_000_000
"""Tokens that are learned from where the number of passes is not said."""

FEWEST, MOST = 3, 100
"""Passes then."""

BLURRED = 0.5
"""What telling blurred tokens counts beside telling hidden ones."""

VARIANCE = 0.05
"""What a channel counts whose features vary less than 1 from token to token: a context that gives all tokens the same costs."""

DECAY, CLIP, WARM = 0.02, 1.0, 0.05


@dataclass(frozen=True)
class Learned:
    """What learning took."""

    steps: int
    passes: int
    tokens: int
    """Tokens learned from, each as often as it was."""
    seconds: float
    loss: float
    """Mean over the last tenth."""


def passes_of(masked: Masked, tokens: int) -> int:
    """Times that each token is learned from."""
    return masked.passes or min(MOST, max(FEWEST, round(SEEN / max(1, tokens))))


def learn(
    model: ContextTransformer, blocks: TokenBlocks, masked: Masked, stride_um: float | None, seed: int, device: torch.device,
    tell: Callable[[str], None] = lambda words: None,  # noqa: ARG005
) -> Learned:  # fmt: skip
    """Fit a model, whose mean and spread are set, in place; on a CPU the same seed gives the same bits."""
    passes = passes_of(masked, blocks.tokens)
    whole = passes * blocks.tokens
    model.to(device).train().requires_grad_(requires_grad=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    solver = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=masked.learning_rate, betas=(0.9, 0.98)
    )
    chance = torch.Generator().manual_seed(seed)
    began, seen, told, losses = time.perf_counter(), 0, 0, []
    for step, batch in enumerate(_batches(blocks, passes, masked, seed)):
        for group in solver.param_groups:
            group["lr"] = masked.learning_rate * _rate((seen + len(batch[1]) / 2) / whole)
        loss = batch_loss(model, batch, masked.hidden, stride_um, chance)
        solver.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        solver.step()
        seen += len(batch[1])
        losses.append(loss.detach())
        if seen * 10 // whole > told:
            told = seen * 10 // whole
            tell(f"{told * 10} %, step {step}, loss {float(losses[-1]):.3f}, {seen / (time.perf_counter() - began):,.0f} tokens/s")
    last = torch.stack(losses[-max(1, len(losses) // 10) :]).mean()
    model.eval().requires_grad_(requires_grad=False).cpu()
    return Learned(len(losses), passes, seen, time.perf_counter() - began, float(last))


def batch_loss(
    model: ContextTransformer, batch: tuple[Tensor, Tensor, Tensor], hidden: float, stride_um: float | None, chance: torch.Generator
) -> Tensor:
    """Mean squared error of hidden and of blurred tokens, standardised, and what a lack of variance costs."""
    assert model.ends is not None
    tokens, tok_row, tok_col = batch
    drawn = torch.rand(len(tokens), generator=chance)
    unseen, blurred = drawn < hidden, (drawn >= hidden) & (drawn < 2 * hidden)
    others = [torch.randint(len(tokens), (len(tokens),), generator=chance) for _ in range(2)]
    strength = torch.rand(len(tokens), 1, generator=chance) * blurred[:, None]
    device = model.norm.weight.device
    tokens = tokens.to(device)
    given = tokens + strength.to(device) * (tokens[others[0].to(device)] - tokens[others[1].to(device)]) / math.sqrt(2)
    mixed = model.encode(given, tok_row, tok_col, stride_um, unseen.to(device))
    for layer in range(model.depth):
        mixed = model.mix(layer, mixed, tok_row, tok_col)
    features = model.norm(mixed)
    error = (model.ends.leave(features) - model.ends.standardise(tokens)).square().mean(dim=1)
    told = error[unseen.to(device)].mean() if bool(unseen.any()) else error.sum() * 0
    cleared = error[blurred.to(device)].mean() if bool(blurred.any()) else error.sum() * 0
    spread = (features.var(dim=0, correction=0) + 1e-4).sqrt()
    lacking: Tensor = torch.relu(1 - spread).mean()
    found: Tensor = told + BLURRED * cleared + VARIANCE * lacking
    return found


def _rate(done: float) -> float:
    """Share of the highest learning rate when a part of all is done: up over the first of it, then down a cosine."""
    if done < WARM:
        return done / WARM
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM) / (1 - WARM))))


def _batches(blocks: TokenBlocks, passes: int, masked: Masked, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens with places on one grid, on which each block lies by itself, turned and moved; about `BATCH` tokens each."""
    chance = np.random.default_rng([seed, 1 << 20])
    waiting: list[Block] = []
    for number in range(passes):
        for block in blocks.drawn(seed, number):
            waiting.append(block)
            if sum(map(len, waiting)) >= BATCH:
                yield _laid_out(waiting, blocks.side, masked.window, chance)
                waiting = []
    if waiting:
        yield _laid_out(waiting, blocks.side, masked.window, chance)


def _laid_out(blocks: list[Block], side: int, window: int, chance: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks beside each other, so far apart that no window holds tokens of two."""
    apart = (side // window + 4) * window
    places = []
    for k, block in enumerate(blocks):
        row, col = block.tok_row - block.tok_row.min(), block.tok_col - block.tok_col.min()
        flip = chance.integers(2, size=3).tolist()
        row, col = (col, row) if flip[0] else (row, col)
        row, col = (side - 1 - row if flip[1] else row), (side - 1 - col if flip[2] else col)
        moved = chance.integers(window, size=2).tolist()
        places.append((row + moved[0] + window * int(chance.integers(64)), col + moved[1] + k * apart))
    tokens = torch.from_numpy(np.concatenate([block.tokens for block in blocks]).astype(np.float32))
    row, col = (torch.from_numpy(np.concatenate(axis)) for axis in zip(*places, strict=True))
    return tokens, row, col
