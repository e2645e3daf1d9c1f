"""A net with one trunk and three decoders that gives the maps of HoVer-Net: nuclei, distances to their middle, types.

The trunk halves the image `depth` times; each decoder brings it back with what the trunk had at that size. All convolutions keep the size. It is our
own, and takes no published weights: what is trained elsewhere comes as `module:factory` that gives the same maps.
Source of the three branches: Graham et al. 2019, "Hover-Net", section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tilestream.models.patch_embed import IMAGENET_MEAN, IMAGENET_STD, freeze, normalise_pixels


class Step(nn.Module):
    """(n, inputs, h, w) to (n, outputs, h, w): two convolutions, and the input on top."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.around = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The features of the next layer."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.around(x))


class Branch(nn.Module):
    """One decoder: (n, widths[-1], h, w) and the features of each larger size to (n, outputs, H, W)."""

    def __init__(self, widths: list[int], outputs: int) -> None:
        super().__init__()
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.up = nn.ModuleList(Step(deep + shallow, shallow) for deep, shallow in pairs)
        self.out = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The map of this branch."""
        x = features[-1]
        for step, shallow in zip(self.up, features[-2::-1], strict=True):
            larger = nn.functional.interpolate(x, size=shallow.shape[-2:], mode="nearest")
            x = step(torch.cat([larger, shallow], dim=1))
        found: Tensor = self.out(x)
        return found


class ThreeBranch(nn.Module):
    """(n, 3, S, S) floats to `np` (n, 2, S, S), `hv` (n, 2, S, S) and, with classes, `tp` (n, 1 + classes, S, S).

    Parameters
    ----------
    classes : int
        0 leaves out the branch of types.
    width : int
        Channels at full size; doubled with every halving.
    depth : int
        Halvings.
    """

    def __init__(self, classes: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth + 1)]
        self.trunk = nn.ModuleList(Step(before, after) for before, after in zip([3, *widths], widths, strict=False))
        outputs = {"np": 2, "hv": 2, **({"tp": classes + 1} if classes else {})}
        self.branches = nn.ModuleDict({name: Branch(widths, count) for name, count in outputs.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The maps by name."""
        features: list[Tensor] = []
        for step in self.trunk:
            features.append(step(nn.functional.max_pool2d(features[-1], 2, ceil_mode=True) if features else x))
        return {name: branch(features) for name, branch in self.branches.items()}


class MapDetector(nn.Module):
    """(n, 3, S, S) uint8 to the maps of a net that takes normalised floats."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std
        freeze(self)

    def forward(self, patches: Tensor) -> Any:
        """What the net gives."""
        return self.net(normalise_pixels(patches, self.mean, self.std, torch.float32))
