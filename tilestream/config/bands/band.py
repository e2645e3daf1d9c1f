"""One band of a raster: its names, its wavelength, and the scale and offset that make a value of a sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """What is known of a band; a value is sample * scale + offset."""

    name: str = ""
    common: str = ""
    """What it is called across sensors: red, nir08, swir16 (STAC's common names)."""
    wavelength: float | None = None
    """Of its centre, µm."""
    scale: float = 1.0
    offset: float = 0.0
    mean: float | None = None
    """Of its values, over what an encoder was trained on."""
    std: float | None = None


def _bands(scale: float, offset: float, *rows: tuple[str, str, float]) -> tuple[Band, ...]:
    return tuple(Band(name, common, wavelength, scale, offset) for name, common, wavelength in rows)


_MSI = (
    *(("B01", "coastal", 0.443), ("B02", "blue", 0.490), ("B03", "green", 0.560), ("B04", "red", 0.665), ("B05", "rededge071", 0.704)),
    *(("B06", "rededge075", 0.740), ("B07", "rededge078", 0.783), ("B08", "nir", 0.833), ("B8A", "nir08", 0.865), ("B09", "nir09", 0.945)),
    *(("B11", "swir16", 1.610), ("B12", "swir22", 2.190)),
)
_OLI = (
    *(("coastal", 0.443), ("blue", 0.482), ("green", 0.561), ("red", 0.655), ("nir08", 0.865), ("swir16", 1.609), ("swir22", 2.201)),
)  # fmt: skip
PRESETS: dict[str, tuple[Band, ...]] = {
    "sentinel-2": _bands(1e-4, 0.0, *_MSI),
    "sentinel-2-04.00": _bands(1e-4, -0.1, *_MSI),
    "landsat-c2-l2": _bands(2.75e-5, -0.2, *((f"SR_B{k}", common, light) for k, (common, light) in enumerate(_OLI, 1))),
    "hls-l30": _bands(1e-4, 0.0, *((f"B0{k}", common, light) for k, (common, light) in enumerate(_OLI, 1))),
    "hls-s30": _bands(1e-4, 0.0, *_MSI),
}
"""Surface reflectance as these products store it: Sentinel-2 L2A before processing baseline 04.00 or brought to it, and since (offset -1000);
Landsat 8 and 9 Collection 2 Level 2; Harmonized Landsat Sentinel."""

FILE = "file"
"""Instead of a preset: names, scale and offset are what the file says."""
