"""Dense models of random weights and known receptive field, in the shape that a head's factory returns."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.images import make_image


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
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5 * (2 if tensor.ndim > 1 else 0.2))
        for module in layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
                module.weight += 1  # else little of the image is left behind six of them
    return layers.eval()


def balanced(model: Dense) -> Dense:
    """The same model, with a last bias by which every class occurs on made images."""
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.inference_mode():
        out = model(torch.from_numpy(make_image(192, 192, 1)).permute(2, 0, 1)[None])
    with torch.no_grad():
        last.bias -= (out.mean((0, 2, 3)) * 64).round() / 64  # the last bits are another processor's, or another number of threads'
    return model


def dilated_net(radius: int, channels: int = 8, classes: int = 4, seed: int = 0) -> Dense:
    """Stride 1; an output pixel sees 2 * radius + 1 px a side."""
    layers: list[nn.Module] = []
    left, before = radius, 3
    for dilation in (1, 2, 4, 8, 16, 32):
        here = min(dilation, left)
        if here:
            layers += [nn.Conv2d(before, channels, 3, padding=here, dilation=here), nn.BatchNorm2d(channels), nn.ReLU()]
            before, left = channels, left - here
    return balanced(Dense(settled(nn.Sequential(*layers, nn.Conv2d(before, classes, 1)), seed), classes).eval())


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
    return balanced(Dense(settled(nn.Sequential(*layers), seed), classes).eval())


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


def values95() -> Dense:
    return Dense(dilated_net(47).layers, regression=True).eval()


def values_strided41() -> Dense:
    return Dense(strided_net(41).layers, regression=True).eval()


def values_strided95() -> Dense:
    return Dense(strided_net(95).layers, regression=True).eval()


class SmallUnet(Dense):
    """Two levels with a skip, a squeeze over the whole patch, and bilinear enlarging: it can only be blended."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(nn.Identity(), classes)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Conv2d(11, classes, 3, padding=1)
        settled(self, 3)
        balanced(self)

    def forward(self, pixels: Tensor) -> Tensor:
        floats = pixels.float() / 255
        deep = self.down(floats)
        deep = deep * torch.sigmoid(deep.mean((2, 3), keepdim=True))
        deep = nn.functional.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=False)
        out: Tensor = self.up(torch.cat([floats, deep], dim=1)) * 8
        return out


class Failing(nn.Module):
    """NaN for patches that hold a square of 7."""

    def __init__(self, model: Dense) -> None:
        super().__init__()
        self.model, self.classes = model, model.classes

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.model(pixels)
        told = (pixels[..., ::4, ::4] == 7).all(1).flatten(1).any(1)
        return torch.where(told[:, None, None, None], torch.nan, out)


def small_unet() -> Dense:
    return SmallUnet().eval()


def values_unet() -> nn.Module:
    model = SmallUnet().eval()
    model.regression = True  # type: ignore[assignment]
    return model


def small_unet_that_fails() -> nn.Module:
    return Failing(SmallUnet()).eval()


def dilated_that_fails() -> nn.Module:
    return Failing(dilated_net(20)).eval()


def counting() -> Dense:
    return dilated_net(7)


@torch.inference_mode()
def whole_pass(model: nn.Module, image: NDArray[np.uint8], margin: int = 100) -> NDArray[np.float32]:
    """(c, h, w) what a model gives in one pass over a whole image, which lies on white as far as the model sees."""
    height, width = image.shape[:2]
    pixels = np.full((height + 2 * margin + -height % 4, width + 2 * margin + -width % 4, 3), 255, np.uint8)
    pixels[margin : margin + height, margin : margin + width] = image
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    out = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())[0]
    torch.set_num_threads(threads)
    stride = len(pixels) // out.shape[1]
    edge = margin // stride
    found: NDArray[np.float32] = out[:, edge : edge - (-height // stride), edge : edge - (-width // stride)].numpy()
    return found
