"""Heads over the tokens of an encoder: a map of tokens becomes one of logits, finer by a whole factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PROBED_SIDE = 32
"""Tokens a side of the map that a decoder is tried on."""


class TokenDecoder(nn.Module):
    """A 1x1 convolution, or one behind a hidden layer of 3x3, enlarged bilinearly.

    Parameters
    ----------
    dim : int
        Features of a token.
    outputs : int
        Classes, or values.
    hidden : int
        Channels of the hidden layer; 0 for none.
    up : int
        Output px a side for each token.
    """

    def __init__(self, dim: int, outputs: int, hidden: int = 0, up: int = 4) -> None:
        super().__init__()
        if up < 1 or hidden < 0:
            raise ValueError(f"up must be at least 1 and hidden at least 0, got {up} and {hidden}")
        self.dim, self.up = dim, up
        before: list[nn.Module] = [nn.Conv2d(dim, hidden, 3, padding=1), nn.ReLU()] if hidden else []
        self.layers = nn.Sequential(*before, nn.Conv2d(hidden or dim, outputs, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, dim, h, w) to (n, outputs, h * up, w * up)."""
        out: Tensor = self.layers(tokens)
        return out if self.up == 1 else functional.interpolate(out, scale_factor=self.up, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class TokenReach:
    """What a decoder does with a map of tokens."""

    channels: int
    """Of its output."""
    up: int
    """Output px a side for each token."""
    margin: int
    """Tokens beyond one on which its output depends."""


@torch.inference_mode()
def measure_token_reach(model: nn.Module, dim: int) -> TokenReach:
    """Probe a decoder in evaluation mode: half a map of NaN spoils exactly the outputs that depend on it.

    Raises
    ------
    ValueError
        Its output is no image, it is not in inference mode, or it sees further than a quarter of the map that it is tried on.
    """
    device = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    tokens = torch.randn(1, dim, PROBED_SIDE, PROBED_SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    out = model(tokens)
    if not (isinstance(out, Tensor) and out.ndim == 4 and out.is_floating_point() and out.shape[2] == out.shape[3]):
        seen = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"it gave {seen} for tokens {tuple(tokens.shape)}; a decoder returns (n, classes, h * u, w * u) floating point")
    up, rest = divmod(out.shape[2], PROBED_SIDE)
    if up < 1 or rest:
        raise ValueError(f"it gave {out.shape[2]} px for {PROBED_SIDE} tokens a side, but a whole number of px for each is wanted")
    if not torch.equal(model(tokens), out):
        raise ValueError("it gives another output when asked again: dropout is left on. Call eval() in the factory")
    margin = max(_seen_beyond(model, tokens, axis, up, first=first) for axis in (2, 3) for first in (True, False))
    if 4 * margin > PROBED_SIDE:
        raise ValueError(f"it sees more than {PROBED_SIDE // 4} tokens beyond one, or all of them. Give one of fewer layers")
    return TokenReach(int(out.shape[1]), up, margin)


def _seen_beyond(model: nn.Module, tokens: Tensor, axis: int, up: int, *, first: bool) -> int:
    """How many tokens beyond an edge in the middle see what lies behind it."""
    half = PROBED_SIDE // 2
    spoilt = tokens.clone()
    spoilt.narrow(axis, 0 if first else half, half).fill_(torch.nan)
    touched = torch.isnan(model(spoilt)).any(tuple(k for k in range(4) if k != axis))
    within = touched[half * up :] if first else touched[: half * up].flip(0)
    found = torch.nonzero(within)
    return 0 if len(found) == 0 else int(found.max()) // up + 1


def spread_tokens(tokens: Tensor, there: Tensor, steps: int) -> Tensor:
    """(d, h, w) tokens, where those that are missing up to `steps` away from others have the mean of their neighbours, further ones 0.

    A decoder sees at the edge of tissue what goes on there, and no black border. `there` (h, w) says which are not missing.
    """
    found, known = torch.where(there, tokens, 0), there
    for _ in range(steps):
        if bool(known.all()):
            break
        sums, count = torch.zeros_like(found), torch.zeros_like(known, dtype=found.dtype)
        padded, weights = functional.pad(found, (1, 1, 1, 1)), functional.pad(known.to(found.dtype), (1, 1, 1, 1))
        height, width = known.shape
        for y in range(3):
            for x in range(3):
                sums += padded[:, y : y + height, x : x + width]
                count += weights[y : y + height, x : x + width]
        found = torch.where(known, found, sums / count.clamp(min=1))
        known = known | (count > 0)
    return found
