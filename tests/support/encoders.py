"""Encoders for tests, named in configs as `tests.support.encoders:<factory>`."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class MeanRGB(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 3) float32: the exact mean of each tile's pixels."""

    dim = 3

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles.sum(dim=(2, 3), dtype=torch.int64).double().div(tiles.shape[2] * tiles.shape[3]).float()


class Corners(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 12): the four corner pixels, which tell a shifted or turned tile apart."""

    dim = 12

    def forward(self, tiles: Tensor) -> Tensor:
        return tiles[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].flatten(1).float()


class NaNs(MeanRGB):
    """NaN for tiles whose mean red is odd after rounding."""

    def forward(self, tiles: Tensor) -> Tensor:
        mean = super().forward(tiles)
        return torch.where(mean[:, :1].round() % 2 == 1, torch.nan, mean)


class Trained(MeanRGB):
    """Declares what it was trained for."""

    tile_size = 256
    mpp = 0.5


def mean_rgb() -> nn.Module:
    return MeanRGB()


def corners() -> nn.Module:
    return Corners()


class WideCorners(Corners):
    """The corners as many times over as makes `dim` numbers of about 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, tiles: Tensor) -> Tensor:
        return (super().forward(tiles) / 128 - 1).repeat(1, self.dim // 12)


def wide_corners(dim: int) -> nn.Module:
    return WideCorners(dim)


class SomeCorners(Corners):
    """NaN for tiles whose first pixel's red is odd."""

    def forward(self, tiles: Tensor) -> Tensor:
        found = super().forward(tiles)
        return torch.where(found[:, :1] % 2 == 1, torch.nan, found)


def some_corners() -> nn.Module:
    return SomeCorners()


class SlowCorners(Corners):
    """Takes its time, so that a run can be killed in the middle."""

    def forward(self, tiles):
        time.sleep(0.02)
        return super().forward(tiles)


def slow_corners() -> nn.Module:
    return SlowCorners()


class CountedCorners(Corners):
    """Writes a line for each call into the file that TILESTREAM_TEST_COUNT names: the process that made it."""

    def forward(self, tiles):
        with Path(os.environ["TILESTREAM_TEST_COUNT"]).open("a") as file:  # appending a few bytes is one step
            file.write(f"{os.getpid()}\n")
        time.sleep(0.15)
        return super().forward(tiles)


def counted_corners() -> nn.Module:
    return CountedCorners()


class Gated(Corners):
    """Waits, on any tiles but the noise by which it is known, until the file is there that TILESTREAM_TEST_GATE names."""

    served = 0

    def forward(self, tiles):
        self.served += 1
        while self.served > 2 and not Path(os.environ["TILESTREAM_TEST_GATE"]).exists():
            time.sleep(0.02)
        return super().forward(tiles)


def gated() -> nn.Module:
    return Gated()


class Poison(CountedCorners):
    """Kills its process whenever it is called after the two calls by which it is known, as a crashing library would."""

    def forward(self, tiles):
        out = super().forward(tiles)
        if out.shape[0] and len(Path(os.environ["TILESTREAM_TEST_COUNT"]).read_text().split()) > 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return out


def poison() -> nn.Module:
    return Poison()


class Stuck(Corners):
    """Never ends on a tile; the noise by which the encoder is known goes through."""

    served = 0

    def forward(self, tiles):
        self.served += 1
        if self.served > 2:
            time.sleep(600)
        return super().forward(tiles)


def stuck() -> nn.Module:
    return Stuck()


class Picky(MeanRGB):
    """Raises on tiles whose first pixel is dark in red, each time."""

    def forward(self, tiles: Tensor) -> Tensor:
        if (tiles[:, 0, 0, 0] < 64).any():
            raise KeyError("a stain that is not in the table")
        return super().forward(tiles)


class Fussy(MeanRGB):
    """Raises whatever it is given, with an exception that cannot be pickled."""

    def forward(self, tiles: Tensor) -> Tensor:
        class UnknownError(Exception):
            def __reduce__(self):
                raise TypeError("not to be pickled")

        raise UnknownError("nothing suits me")


def picky() -> nn.Module:
    return Picky()


def fussy() -> nn.Module:
    return Fussy()


class Scaled(Corners):
    """Corners times a number that a file says."""

    def __init__(self, gain: str) -> None:
        super().__init__()
        self._gain = 1 + float(Path(gain).read_text())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self._gain


def scaled(gain: str) -> nn.Module:
    return Scaled(gain)


class ToldCorners(SlowCorners):
    """Corners times what a file says that no config names; held as a weight, as a buffer that is not saved, or as a plain number."""

    def __init__(self, kept: str, file: str) -> None:
        super().__init__()
        gain = float(Path(file).read_text())
        if kept == "weight":
            self.gain = nn.Parameter(torch.tensor(gain))
        elif kept == "buffer":
            self.register_buffer("gain", torch.tensor(gain), persistent=False)
        else:
            self.gain = {"of": [gain]}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.gain["of"][0] if isinstance(self.gain, dict) else self.gain)


def told_corners(kept: str = "weight") -> nn.Module:
    return ToldCorners(kept, os.environ["TILESTREAM_TEST_GAIN"])


class FailsWhileTold(Corners):
    """NaN as long as TILESTREAM_TEST_FAIL is set."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (float("nan") if "TILESTREAM_TEST_FAIL" in os.environ else 1.0)


def fails_while_told() -> nn.Module:
    return FailsWhileTold()


def no_factory() -> nn.Module:
    raise RuntimeError("the licence server is asleep")


def no_tissue(pixels, um_per_px):
    raise IndexError("no such stain")


class OneHugeToken(nn.Module):
    """(n, 3, size, size) uint8 -> (n, 4, 4): tokens of ones; two of +-70,000, whose mean is 0, where a tile's first pixel is dark in red."""

    dim = 4

    def forward(self, tiles: Tensor) -> Tensor:
        out = torch.ones(len(tiles), 4, 4)
        dark = tiles[:, 0, 0, 0] < 128
        out[dark, 0], out[dark, 1] = 7e4, -7e4
        return out


def one_huge_token() -> nn.Module:
    return OneHugeToken()


def nans() -> nn.Module:
    return NaNs()


def trained() -> nn.Module:
    return Trained()


def no_module() -> str:
    return "not a module"


def wrong_dim() -> nn.Module:
    module = MeanRGB()
    module.dim = 4
    return module


class BandCorners(nn.Module):
    """(n, bands, size, size) float32 -> (n, 5 * bands): the mean of each band, then its four corners; refuses what is not finite."""

    def __init__(self, bands: int | list[str] = 6) -> None:
        super().__init__()
        self.bands = bands
        self.count = bands if isinstance(bands, int) else len(bands)
        self.dim = 5 * self.count

    def forward(self, tiles: Tensor) -> Tensor:
        if tiles.dtype != torch.float32 or tiles.shape[1] != self.count or not torch.isfinite(tiles).all():
            raise ValueError(f"{tiles.dtype} {tuple(tiles.shape)} with {int((~torch.isfinite(tiles)).sum())} numbers that are not finite")
        corners = tiles[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
        return torch.cat([tiles.double().mean(dim=(2, 3)).float(), corners.flatten(1)], dim=1)


def band_corners(bands: int | list[str] = 6) -> nn.Module:
    return BandCorners(bands)


class SlowBandCorners(BandCorners):
    """Takes its time, so that a run can be killed in the middle."""

    def forward(self, tiles: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().forward(tiles)


def slow_band_corners() -> nn.Module:
    return SlowBandCorners()
