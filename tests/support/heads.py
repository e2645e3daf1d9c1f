"""Heads for tests: files of ours with random weights, and factories named `tests.support.heads:<factory>`."""

import torch
from torch import nn

from tilestream.encoders.heads.head_file import HeadAbout, build_model, write_head
from tilestream.models.heads.token_decoder import PROBED_SIDE

CLASSES = ("stroma", "epithelium", "fat")


def head_file(path, *, dim=12, kind="classify", model="linear", read="tiles", classes=CLASSES, seed=1, scale=0.05, **about):
    """Write a head with random weights and return its path, and the module."""
    told = HeadAbout(kind, model, read, dim, len(classes), classes=classes, **about)
    module = build_model(told)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_floating_point():
                value.normal_(0, scale, generator=generator)
            else:
                value.random_(0, len(classes), generator=generator)
    write_head(path, module, told)
    return str(path), module


class OddIsNaN(nn.Module):
    """Logits of two classes; NaN where the first feature is odd."""

    classes = ("low", "high")

    def forward(self, x):
        logits = torch.stack([-x[:, 0], x[:, 0]], dim=1) / 255
        return torch.where((x[:, :1].round() % 2) == 1, torch.nan, logits)


def odd_is_nan():
    return OddIsNaN()


class WholeBag(nn.Module):
    """A slide's head that takes no blocks: the mean row, and attention by the first feature."""

    classes = ("benign", "malignant")

    def forward(self, x):
        return x.mean(dim=0)[:2], x[:, 0] / 255


class PlacedBag(WholeBag):
    """The same, of where the tiles lie."""

    def forward(self, x, positions):
        return positions.mean(dim=0), positions[:, 1] / 1000


def placed_bag():
    return PlacedBag()


def whole_bag():
    return WholeBag()


class Redness(nn.Module):
    """Logits of two classes by the exact mean of a patch's red."""

    classes = ("low", "high")

    def forward(self, patches):
        red = patches[:, 0].sum(dim=(1, 2), dtype=torch.int64).double() / (patches.shape[2] * patches.shape[3] * 64)
        return torch.stack([2 - red, red], dim=1).float()


def redness():
    return Redness()


class GlobalDecoder(nn.Module):
    """Tokens less their mean over the whole map."""

    classes = ("a", "b", "c")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens - tokens.mean((2, 3), keepdim=True))[:, :3]


def global_decoder() -> nn.Module:
    return GlobalDecoder()


class SpoiltDecoder(nn.Module):
    """NaN in every fifth row of a map that is one block; of others, sound values."""

    classes = ("a", "b", "c")

    def forward(self, tokens):
        out = tokens[:, :3].clone()
        if tokens.shape[2] != PROBED_SIDE:
            out[:, :, ::5] = float("nan")
        return out


def spoilt_decoder() -> nn.Module:
    return SpoiltDecoder()


class Shares(nn.Module):
    """What makers of models often export: a softmax at the end, over the last but (n, d) or (n, 3, h, w)."""

    classes = ("a", "b", "c")

    def __init__(self, dim, *, bag=False, logarithms=False):
        super().__init__()
        self.net, self.bag, self.logarithms = nn.Linear(dim, 3), bag, logarithms
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape).cos() / 8)

    def forward(self, x):
        out = torch.log_softmax(self.net(x.float().movedim(1, -1)), dim=-1).movedim(-1, 1)
        out = out if self.logarithms else out.exp()
        return out.mean(0) if self.bag else out


def shares():
    return Shares(12)


def shares_of_a_bag():
    return Shares(12, bag=True)


def shares_of_pixels():
    return Shares(3)


def logarithms():
    return Shares(12, logarithms=True)


class RedIsNaN(Redness):
    """No answer for any patch."""

    def forward(self, patches):
        return super().forward(patches) * torch.nan


def red_is_nan():
    return RedIsNaN()


class NothingFinite(nn.Module):
    """An encoder of tiles that gives no number."""

    dim = 12

    def forward(self, tiles):
        return torch.full((len(tiles), self.dim), torch.nan, device=tiles.device)


def nothing_finite():
    return NothingFinite()
