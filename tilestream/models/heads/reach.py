"""How far a dense model sees, measured by what a NaN spoils.

A NaN passes through convolutions, normalisation, activations, pooling and interpolation, whatever the weights are. So half an image of NaN
spoils exactly those outputs that depend on it, and one NaN spoils everything where an operation is global: attention, squeeze-and-excitation,
normalisation by the image's own statistics. Where a patch ends at a multiple of the model's period, what is further than its reach
from there is what the whole image would have given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PERIODS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Steps, px, that a convolutional model may have: products of strides."""

OTHER_PIXELS = (0, 90, 160, 255)
"""What half an image is set to where a model takes whole numbers only, among which there is no NaN; what differs in any bit depends on it."""

TOLERANCE = 1e-4
"""Relative difference below which two outputs count as the same: a step that is none changes far more."""


@dataclass(frozen=True)
class Reach:
    """What a dense model does with a patch."""

    channels: int
    """Of its output."""
    stride: int
    """Px a side that become one output px."""
    period: int
    """An image moved by so many px gives the same output, moved; px."""
    margin: int | None
    """Border of a patch, a multiple of `period`, within which output depends on what lies beyond it; None where all of it does, or more than a patch holds."""


@torch.inference_mode()
def measure_reach(model: nn.Module, size: int) -> Reach:
    """Probe a model in evaluation mode with patches of `size` px, fp32, where it is.

    Raises
    ------
    ValueError
        Its output is no image, or it is not in inference mode: with the same patch in another batch, or a second time, it gives something else.
    """
    noise = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).mul(255)
    device = next(iter([*model.parameters(), *model.buffers()]), torch.empty(0)).device
    pixels = noise.byte().to(device)
    out = model(pixels)
    stride = check_output(out, size)
    _check_inference(model, pixels, out)
    channels = out.shape[1]
    period = _period(model, pixels[:1], stride)
    margin = None if period is None else _margin(model, noise[:1].to(device), stride, period)
    return Reach(channels, stride, period or stride, margin)


def check_output(out: object, size: int) -> int:
    """The stride of a dense output (n, c, size / stride, size / stride). Raises ValueError where it is none."""
    if not (isinstance(out, Tensor) and out.ndim == 4 and out.is_floating_point()):
        seen = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"it gave {seen} for patches (n, 3, {size}, {size}); a dense model returns (n, classes, h, w) floating point")
    if out.shape[2] != out.shape[3] or size % out.shape[2]:
        raise ValueError(f"it gave {tuple(out.shape)} for patches of {size} px; height and width must be {size} or a whole part of it")
    return size // int(out.shape[2])


def _check_inference(model: nn.Module, pixels: Tensor, out: Tensor) -> None:
    """Refuse a model that drops out, or normalises by its batch."""
    if not torch.equal(model(pixels), out):
        raise ValueError("it gives another output when asked again: dropout is left on. Call eval() in the factory")
    other = model(torch.stack([pixels[0], 255 - pixels[1]]))[0]
    if not _alike(other, out[0]):
        raise ValueError(
            "what it gives for a patch depends on the others of its batch: a normalisation uses their statistics. Give it running ones"
        )


def _alike(a: Tensor, b: Tensor) -> bool:
    scale = float(b.float().abs().max()) or 1.0
    return float((a.float() - b.float()).abs().max()) <= TOLERANCE * scale


def _period(model: nn.Module, pixels: Tensor, stride: int) -> int | None:
    """The smallest step by which an image may move, judged by the middle of the output; None where there is none."""
    size = pixels.shape[-1]
    out = model(pixels)
    for period in PERIODS:
        if period % stride or 4 * period > size:
            continue
        moved = model(torch.roll(pixels, (period, period), (2, 3)))
        by, middle = period // stride, slice(size // stride * 3 // 8 + period // stride, size // stride * 5 // 8)
        before = slice(middle.start - by, middle.stop - by)
        if middle.stop > middle.start and _alike(moved[..., middle, middle], out[..., before, before]):
            return period
    return None


def _margin(model: nn.Module, noise: Tensor, stride: int, period: int) -> int | None:
    """How far beyond an edge at a multiple of the period the output depends on what lies behind it, on any side; px."""
    size = noise.shape[-1]
    edge = size // 2 // period * period
    far = 0
    for axis in (2, 3):
        for behind in (slice(0, edge), slice(edge, size)):
            spoilt = _spoilt(model, noise, axis, behind)
            within = spoilt[edge // stride :] if behind.start == 0 else spoilt[: edge // stride].flip(0)  # from the edge on
            touched = torch.nonzero(within)
            far = max(far, 0 if len(touched) == 0 else (int(touched.max()) + 1) * stride)
    margin = -(-far // period) * period
    return margin if 4 * margin <= size else None


def _spoilt(model: nn.Module, noise: Tensor, axis: int, behind: slice) -> Tensor:
    """(side,) which output rows (or columns) change when half of the image does."""
    across = tuple(k for k in range(4) if k != axis)
    place = tuple(behind if k == axis else slice(None) for k in range(4))
    if _passes_nan(model, noise):
        pixels = noise.clone()
        pixels[place] = torch.nan
        return torch.isnan(model(pixels)).any(across)
    pixels = noise.byte()
    before = model(pixels)
    spoilt = torch.zeros(before.shape[axis], dtype=torch.bool, device=noise.device)
    for value in OTHER_PIXELS:
        pixels[place] = value
        spoilt |= (model(pixels) != before).any(across)
    return spoilt


def _passes_nan(model: nn.Module, noise: Tensor) -> bool:
    """Whether a model takes pixels as floating point and does not swallow a NaN among them."""
    try:
        return bool(torch.isnan(model(torch.full_like(noise, torch.nan))).all())
    except (RuntimeError, TypeError, ValueError):  # it insists on uint8
        return False
