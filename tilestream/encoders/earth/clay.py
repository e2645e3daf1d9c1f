"""Clay 1.5 on its authors' own encoder: bands by wavelength, of any sensor.

Facts are from its code and configs/metadata.yaml at https://github.com/Clay-foundation/model: ViT-L with patches of 8 px whose projection is made from the bands' wavelengths
in µm, places scaled by the ground sampling distance in m; date and place are zeros where they are not told, as in its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tilestream.encoders.preset_encoders import fetch_preset
from tilestream.encoders.presets import Preset
from tilestream.encoders.weights import apply_weights, read_weights
from tilestream.errors import ConfigError
from tilestream.models.patch_embed import freeze

PACKAGE = "claymodel"
INSTALL = "pip install git+https://github.com/Clay-foundation/model.git"

SHAPE: dict[str, Any] = {"patch_size": 8, "dim": 1024, "depth": 24, "heads": 16, "dim_head": 64, "mlp_ratio": 4.0}

BEFORE = ("model.encoder.", "encoder.")
"""What stands before the encoder's names in a checkpoint."""

OUTPUTS = {"class": "class token", "mean": "mean of the patch tokens", "tokens": "patch tokens"}


@dataclass(frozen=True)
class Sensor:
    """What Clay was trained on of one kind of image."""

    gsd: float
    """Metres of a pixel."""
    waves: dict[str, float]
    """µm of the middle of each band, by common name, in order."""


_SENTINEL = {
    "blue": 0.493, "green": 0.56, "red": 0.665, "rededge071": 0.704, "rededge075": 0.74, "rededge078": 0.783, "nir": 0.842, "nir08": 0.865,
    "swir16": 1.61, "swir22": 2.19,
}  # fmt: skip
SENSORS = {
    "sentinel-2": Sensor(10, _SENTINEL),
    "landsat": Sensor(30, {"red": 0.65, "green": 0.56, "blue": 0.48, "nir08": 0.86, "swir16": 1.6, "swir22": 2.2}),
    "naip": Sensor(1, {"red": 0.65, "green": 0.56, "blue": 0.48, "nir": 0.842}),
}


class ClayEncoder(nn.Module):
    """Clay's encoder on tiles alone.

    Parameters
    ----------
    encoder : nn.Module
        `claymodel.model.Encoder` that masks nothing.
    waves : dict of str to float
        µm of each band, in the order of the tiles.
    gsd : float
        Metres of a pixel.
    output : str
        class, mean or tokens.
    """

    tile_size = 256
    waves: Tensor
    gsd: Tensor

    def __init__(self, encoder: nn.Module, waves: dict[str, float], gsd: float, output: str) -> None:
        super().__init__()
        self.encoder, self.output, self.dim = encoder, output, int(SHAPE["dim"])
        self.bands, self.vector, self.mpp = tuple(waves), OUTPUTS[output], gsd * 1e6
        self.register_buffer("waves", torch.tensor(list(waves.values())), persistent=False)
        self.register_buffer("gsd", torch.tensor(float(gsd)), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """(n, bands, 256, 256) float32 to (n, dim), or (n, 1024, dim) where the output is `tokens`."""
        untold = tiles.new_zeros(len(tiles), 4)
        cube = {"pixels": tiles.contiguous(), "time": untold, "latlon": untold, "gsd": self.gsd, "waves": self.waves}
        tokens: Tensor = self.encoder(cube)[0]  # (n, 1 + patches, dim)
        if self.output == "class":
            return tokens[:, 0]
        return tokens[:, 1:] if self.output == "tokens" else tokens[:, 1:].mean(dim=1)


def build_clay(
    preset: Preset,
    weights: str | None,
    *,
    sensor: str = "sentinel-2",
    bands: Sequence[str] | None = None,
    gsd: float | None = None,
    output: str = "class",
) -> ClayEncoder:
    """Clay with its authors' weights, from a file where one is given, else from the hub.

    Parameters
    ----------
    preset : Preset
        Where its weights lie.
    weights : str, optional
        Their file.
    sensor : str
        sentinel-2, landsat or naip.
    bands : sequence of str, optional
        Those of the sensor's bands that tiles have, in order; all where they are not given.
    gsd : float, optional
        Metres of a pixel of a tile, where it is not the sensor's.
    output : str
        class, mean or tokens.

    Raises
    ------
    ConfigError
        claymodel is not installed, an argument is not known, or the weights do not fit.
    InputError
        They cannot be read or fetched.
    """
    for key, value, names in (("sensor", sensor, tuple(SENSORS)), ("output", output, tuple(OUTPUTS))):
        if value not in names:
            raise ConfigError(f"encoder.args.{key}: {value!r}, but it must be one of {', '.join(names)}.")
    known = SENSORS[sensor]
    chosen = tuple(known.waves) if bands is None else tuple(bands)
    if not chosen or (strange := [name for name in chosen if name not in known.waves]):
        raise ConfigError(
            f"encoder.args.bands: {', '.join(map(repr, strange if chosen else ())) or 'none'}, but those of {sensor} are {', '.join(known.waves)}."
        )
    metres = known.gsd if gsd is None else gsd
    if isinstance(metres, bool) or not isinstance(metres, int | float) or not 0 < metres < float("inf"):
        raise ConfigError(f"encoder.args.gsd: {gsd!r}, but it must be the metres of a pixel.")
    made: nn.Module = _encoder_class()(mask_ratio=0.0, shuffle=False, **SHAPE)
    weights = weights or fetch_preset(preset)
    state, notes = read_weights(weights)
    before = next((prefix for prefix in BEFORE if any(key.startswith(prefix) for key in state)), "")
    apply_weights(made, {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}, weights)
    encoder = ClayEncoder(made, {name: known.waves[name] for name in chosen}, float(metres), output)
    encoder.notes = tuple(notes)  # type: ignore[assignment]
    freeze(encoder)
    return encoder


def _encoder_class() -> Any:
    """`claymodel.model.Encoder`; importing it leaves the precision of torch's products as it was."""
    precision = torch.get_float32_matmul_precision()
    try:
        return import_module(f"{PACKAGE}.model").Encoder
    except ModuleNotFoundError as error:
        raise ConfigError(f"encoder.name: clay-1.5 needs the package {error.name}, which is not installed. Run {INSTALL}.") from error
    finally:
        torch.set_float32_matmul_precision(precision)
