"""The middle of EfficientNet-Lite0 as an encoder: statistics of three of its maps, which tell tissues apart without any training on them.

The network is that of Google's EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946): mobile inverted bottlenecks (Sandler et al. 2018,
arXiv:1801.04381) without squeeze and excitation, with ReLU6, and with the padding of TensorFlow. Batch norms are folded into the
convolutions before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tilestream.errors import ConfigError
from tilestream.models.lite_vectors import VECTORS
from tilestream.models.patch_embed import BlankConv, freeze, seeded_init

BATCH_NORM_EPS = 1e-3
"""Added to variances by the network's batch norms."""


@dataclass(frozen=True)
class _Stage:
    """Blocks of one width; the first of them has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM = 32
"""Channels of the first convolution."""
STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
)
"""Of EfficientNet-Lite0, but for the last block and the classifier."""
TAPS = (4, 10, 14)
"""Blocks whose maps are described: the last of three widths, 40, 112 and 192 channels."""
PATCH = 32
"""Side of a cell of the last map, px."""


class SameConv(BlankConv):
    """A convolution padded as TensorFlow's SAME does it: at stride 2 one more below and right than above and left."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, height, width) to (n, outputs, ceil(height / stride), ceil(width / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in images.shape[-2:])
        if down % 2 == 0 and right % 2 == 0:
            return F.conv2d(images, self.weight, self.bias, stride, (down // 2, right // 2), groups=self.groups)
        padded = F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(padded, self.weight, self.bias, stride, groups=self.groups)


class InvertedBottleneck(nn.Module):
    """Widen each pixel, filter each channel in space, narrow again; added to what came in where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        inner = images if self.expand is None else F.relu6(self.expand(images))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return images + out if self.adds else out


class EfficientNetLite(nn.Module):
    """Blocks 0 to 14 of EfficientNet-Lite0, and what a tile becomes through them; frozen and in eval mode as built.

    Pixels are taken as (pixel - 127) / 128. For the maps of blocks 4, 10 and 14, mean and standard deviation of each channel over the
    positions are joined and scaled to unit length; the three are joined: 688 numbers.

    Parameters
    ----------
    output : str
        `mean+std`, or `tokens`: the map of block 14 as one token of 192 channels for each 32 x 32 px, row-major.
    seed : int
        Of the random weights that it is built with.

    Raises
    ------
    ConfigError
        For an output that it does not have.
    """

    tile_size = None
    reentrant = True
    """Threads may call it at the same time."""
    mpp: float | None = None
    precisions = ("fp32", "bf16", "fp16")
    patch = PATCH

    def __init__(self, output: str = "mean+std", seed: int = 0) -> None:
        super().__init__()
        if output not in VECTORS:
            raise ConfigError(f"encoder.args.output: {output!r}, but it must be one of {', '.join(VECTORS)}.")
        self.output = output
        self.stem = SameConv(3, STEM, 3, 2)
        shapes = list(_block_shapes())
        self.blocks = nn.ModuleList([InvertedBottleneck(*shape) for shape in shapes])
        widths = [shapes[tap][1] for tap in TAPS]
        self.dim = widths[-1] if output == "tokens" else 2 * sum(widths)
        self.vector = VECTORS[output]
        seeded_init(self, seed)
        for conv in self.modules():
            if isinstance(conv, SameConv):
                conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) uint8 to (n, dim) float32, or to (n, cells, dim) in the weights' dtype where the output is `tokens`.

        Raises
        ------
        ConfigError
            The side of the tiles is no multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH:
            near = max(1, round(width / PATCH)) * PATCH
            raise ConfigError(f"tiles.size: {width}, but the encoder takes sides that are multiples of {PATCH} px. Set it to {near}.")
        maps = self.forward_maps(self.normalise(images))
        if self.output == "tokens":
            return maps[-1].flatten(2).transpose(1, 2)
        return torch.cat([_describe(found) for found in maps], dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) uint8 to the network's pixels, in the weights' dtype."""
        if images.dtype != torch.uint8:
            raise TypeError(f"Encoders take uint8 pixels, got {images.dtype}")
        pixels = images.float().sub_(127).mul_(1 / 128).to(self.stem.weight.dtype)
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward_maps(self, pixels: Tensor) -> list[Tensor]:
        """(n, 3, height, width) normalised pixels to the maps of `TAPS`, (n, channels, height / s, width / s) for s of 8, 16 and 32."""
        found = F.relu6(self.stem(pixels))
        maps = []
        for number, block in enumerate(self.blocks):
            found = block(found)
            if number in TAPS:
                maps.append(found)
        return maps


def _describe(found: Tensor) -> Tensor:
    """(n, channels, height, width) to (n, 2 * channels) float32 of unit length."""
    std, mean = torch.std_mean(found.float(), dim=(2, 3), correction=0)
    return F.normalize(torch.cat([mean, std], dim=1), dim=1)


def _block_shapes() -> Iterator[tuple[int, int, int, int, int]]:
    """Inputs, outputs, kernel, stride and expansion of each block."""
    widths = [STEM, *(stage.channels for stage in STAGES)]
    for (before, width), stage in zip(pairwise(widths), STAGES, strict=True):
        for number in range(stage.blocks):
            yield (before if number == 0 else width), width, stage.kernel, stage.stride if number == 0 else 1, stage.expansion


def folded_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a whole EfficientNet-Lite0, under the names of the package `efficientnet_lite_pytorch`, folded and under ours.

    A batch norm behind a convolution scales and shifts its channels by fixed numbers: they go into its weights, in float64.
    """
    found: dict[str, Tensor] = {}
    for ours, conv, norm in _layers():
        scale, shift, mean, var = (state[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var"))
        scale = scale / (var + BATCH_NORM_EPS).sqrt()
        found[f"{ours}.weight"] = (state[f"{conv}.weight"].double() * scale[:, None, None, None]).float()
        found[f"{ours}.bias"] = (shift - mean * scale).float()
    return found


def _layers() -> Iterator[tuple[str, str, str]]:
    """Our name of each convolution, the package's, and its batch norm's."""
    yield "stem", "_conv_stem", "_bn0"
    for number, (_, _, _, _, expansion) in enumerate(_block_shapes()):
        ours, theirs = f"blocks.{number}", f"_blocks.{number}"
        if expansion > 1:
            yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
        yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
