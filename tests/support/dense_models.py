"""Dense models of random weights and known receptive field, in the shape that a head's factory returns."""

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """Layers on pixels scaled to one."""

    def __init__(self, layers: nn.Module, classes: int = 4, **told: object) -> None:
        super().__init__()
        self.layers = layers
        self.classes = [f"class{k}" for k in range(classes)]
        for name, value in told.items():
            setattr(self, name, value)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.layers(pixels.float() / 255)
        return out


class SqueezeExcite(Dense):
    """A convolution whose channels are weighed by what the whole image holds."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        out = super().forward(pixels)
        return out * torch.sigmoid(out.mean((2, 3), keepdim=True))


def settled(layers: nn.Module, seed: int) -> nn.Module:
    """The same layers with random weights and random running statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layers.state_dict().values():
            if tensor.is_floating_point():
                fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 16
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5)
        for module in layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return layers.eval()


def dilated_net(radius: int, channels: int = 8, classes: int = 4, seed: int = 0) -> Dense:
    """Stride 1; an output pixel sees 2 * radius + 1 px a side."""
    layers: list[nn.Module] = []
    left, before = radius, 3
    for dilation in (1, 2, 4, 8, 16, 32):
        here = min(dilation, left)
        if here:
            layers += [nn.Conv2d(before, channels, 3, padding=here, dilation=here), nn.BatchNorm2d(channels), nn.ReLU()]
            before, left = channels, left - here
    return Dense(settled(nn.Sequential(*layers, nn.Conv2d(before, classes, 1)), seed), classes).eval()


def strided_net(field: int, channels: int = 8, classes: int = 4, seed: int = 0) -> Dense:
    """Stride 4; an output pixel sees `field` px a side: 41 or 95."""
    first, pool, kernels, dilation = {41: (3, 2, (5, 5), 1), 95: (7, 3, (5, 7), 2)}[field]
    seen = first + 2 * 2 + 2 * (pool - 1) + 4 * dilation * sum(kernel - 1 for kernel in kernels)
    assert seen == field
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, first, padding=first // 2, stride=2), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.MaxPool2d(pool, 2, padding=pool // 2 if pool % 2 else 0),
    ]  # fmt: skip
    for kernel, out in zip(kernels, (channels, classes), strict=True):
        layers.append(nn.Conv2d(channels, out, kernel, padding=dilation * (kernel // 2), dilation=dilation))
    layers.insert(-1, nn.ReLU())
    return Dense(settled(nn.Sequential(*layers), seed), classes).eval()


def dilated41() -> Dense:
    return dilated_net(20)


def dilated95() -> Dense:
    return dilated_net(47)


def strided41() -> Dense:
    return strided_net(41)


def strided95() -> Dense:
    return strided_net(95)


def values41() -> Dense:
    """The logits of `dilated41` as values, which are stored as they are."""
    return Dense(dilated_net(20).layers, regression=True).eval()


def values_strided95() -> Dense:
    return Dense(strided_net(95).layers, regression=True).eval()
