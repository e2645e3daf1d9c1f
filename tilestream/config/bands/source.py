"""The section `source` of a config: what a file leaves open."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from tilestream.config.bands.band import PRESETS
from tilestream.config.bands.given import Bands
from tilestream.config.bands.statistics import STATISTICS, Normalise, channels_of, unsaid
from tilestream.config.types import Bytes, Channels, Index, LocalPath, Positive, Section, Switch, ValueRefusedError, Window


class SourceChoices(Section):
    """What a file leaves open; None means that the file must say it itself."""

    section: ClassVar[str] = "source."

    backend: Literal["auto", "tiff", "openslide", "zarr"] = "auto"
    """Which reader opens the files."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEG is decoded. `auto` is `cpu`: with 16 cores it feeds an H200 as fast as the device's own decoder does (23,200 and
    23,200 tiles/s of 224 px from file tiles of 256), bit for bit as libjpeg-turbo decodes, and refuses every damaged stream that libjpeg
    refuses. `gpu` (extra `gpu`) serves machines with few cores for a fast device: within 1 grey level on 99.9 % of samples, but of
    200 streams with one wrong byte it decoded all 51 that libjpeg refuses."""
    mpp: Positive | None = None
    """Resolution of level 0 for files that do not say, in µm/px. The column `mpp` of a slide list goes before it."""
    z: Index | None = None
    """Index of the focal plane."""
    t: Index | None = None
    """Index of the time point."""
    channels: Channels | None = None
    """One channel (grey) or three (red, green, blue), each by its number from 0 on or by the name that the file gives it: a band's description, the name
    or label of an OME channel. `inspect` lists them. With `normalise`, any number of them, in the order in which the encoder takes them."""
    window: Window | None = None
    """Values that become 0 and 255, for samples of more than 8 bits: two numbers, or such a pair for each of `channels`. Of samples as they are stored;
    with `bands`, of what scale and offset make of them. With `normalise`, what pictures show as black and white."""
    bands: Bands | None = None
    """What is known of the bands of rasters: `sentinel-2`, `sentinel-2-04.00`, `landsat-c2-l2`, `hls-l30`, `hls-s30`; `file` for what the file says; or a mapping of names
    to `{common, wavelength, scale, offset, mean, std}`, wavelengths in µm, or a .yaml or .json file of it. With it, `channels` takes common names (`red`, `nir08`)
    and wavelengths (`665nm`)."""
    normalise: Normalise | None = None
    """For encoders of bands: tiles are then `(value - mean) / std` of each of `channels` in float32, not colours. `prithvi-eo-2`, `clay-1.5-sentinel-2`,
    `clay-1.5-landsat`, `clay-1.5-naip`; `bands` for what `bands` says of each; `{mean: [...], std: [...]}`, a number for each channel; `none` for values as they are.
    The first four choose their bands where `channels` does not."""
    scene: Index | None = None
    """Index of the image in a file that holds several."""
    icc: Switch = False
    """Whether colours are converted to sRGB by the file's profile, by its own rendering intent. A file without a profile, or with a broken
    one, is taken as it is, with a warning. A core converts about 25 MPix/s, a tenth of what it decodes."""
    stage: LocalPath | None = None
    """Folder on a local disk to which slides given by URL are copied whole before they are read: for formats that are read from a disk only, and where
    a slide is read several times. Copies are removed when the run ends."""
    stage_limit: Bytes = 200 * 2**30
    """Bytes of all copies there together; slides wait for room."""

    def recorded(self) -> dict[str, Any]:
        """What pixels depend on, of values also the numbers of presets; bands and what they are normalised by are left out where they are not set."""
        unset = {key for key in ("bands", "normalise") if not getattr(self, key)}
        found = self.model_dump(mode="json", exclude={"backend", "decode", "stage", "stage_limit", *unset})
        return found if self.normalise is None else {**found, "presets": self._presets()}

    def _presets(self) -> dict[str, dict[str, list[float]]]:
        """What presets stand for: mean and standard deviation of each band, scale and offset of each."""
        found = {}
        if isinstance(self.normalise, str) and self.normalise in STATISTICS:
            found[self.normalise] = {name: list(pair) for name, pair in STATISTICS[self.normalise].items()}
        if isinstance(self.bands, str) and self.bands in PRESETS:
            found[self.bands] = {band.name: [band.scale, band.offset] for band in PRESETS[self.bands]}
        return found

    @property
    def valued(self) -> int:
        """Bands whose values a tile holds; 0 where tiles are colours."""
        return 0 if self.normalise is None else len(self.channels or ())

    @model_validator(mode="after")
    def _choose_bands(self) -> Self:
        if self.normalise is None:
            if self.channels is not None and len(self.channels) not in (1, 3):
                raise ValueRefusedError(
                    f"source.channels: {len(self.channels)} channels, but it must be one (grey) or three (red, green, blue). "
                    "For an encoder of bands say how they are normalised: source.normalise"
                )
            return self
        if self.channels is None:
            if (known := channels_of(self.normalise)) is None:
                raise ValueRefusedError(
                    "source.channels: missing. Write the bands that the encoder takes, in its order: source.normalise asks for their values"
                )
            object.__setattr__(self, "channels", known)
        if isinstance(self.normalise, tuple) and len(self.normalise) != len(self.channels or ()):
            raise ValueRefusedError(
                f"source.normalise: {len(self.normalise)} means for {len(self.channels or ())} channels. Give one for each of source.channels"
            )
        if problem := unsaid(self.normalise, bands=self.bands is not None):
            raise ValueRefusedError(f"source.normalise: {problem}")
        if self.icc:
            raise ValueRefusedError(
                "source.icc: true, but source.normalise asks for values of bands, which are no colours. Leave one of both out"
            )
        return self
