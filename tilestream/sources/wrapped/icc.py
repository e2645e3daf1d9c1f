"""Colours by a file's ICC profile: every pixel of the image converted to sRGB, the outside of the image left white."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tilestream.geometry import Region
from tilestream.sources.base import LARGEST_PROFILE, Pixels, SegmentGrid, Source

BLOCK_PIXELS = 1 << 18
"""Pixels converted at once: Pillow holds 8 bytes for each of them, in each thread."""

PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
"""What Pillow raises on profiles that Little CMS cannot read or use."""


class IccSource(Source):
    """Another source's pixels in sRGB. A conversion concerns each pixel alone, so it does not matter by which piece or tile it is read.

    It comes before tiles are averaged. Colours are already on white then, and what lies outside the image, or has no bytes in the file, stays 255.
    """

    def __init__(self, source: Source, transform: Any) -> None:
        self._source, self._transform = source, transform
        self.info = replace(source.info, properties={**source.info.properties, "icc": "applied"})
        self.fetched, self.ahead, self.ahead_bytes = source.fetched, source.ahead, source.ahead_bytes  # type: ignore[method-assign]

    def close(self) -> None:
        self._source.close()

    def segment_grid(self, level: int) -> SegmentGrid | None:
        return self._source.segment_grid(level)

    def held_bytes(self, level: int, pixels: int) -> int:
        grid = self._source.segment_grid(level)
        return self._source.held_bytes(level, pixels) + (grid.height * grid.width if grid else pixels) * 3

    def read_segment(self, level: int, row: int, col: int, out: Pixels | None = None) -> Pixels | None:
        pixels = self._source.read_segment(level, row, col, out)
        return None if pixels is None else self._convert(pixels)

    def _read(self, level: int, region: Region) -> Pixels:
        return self._convert(self._source.read_region(level, region))

    def _convert(self, pixels: Pixels) -> Pixels:
        """(h, w, 3) uint8 in sRGB, in memory of its own."""
        out = np.empty(pixels.shape, np.uint8)
        step = max(1, BLOCK_PIXELS // max(1, pixels.shape[1]))
        for start in range(0, len(pixels), step):
            block = Image.fromarray(np.ascontiguousarray(pixels[start : start + step]))
            ImageCms.applyTransform(block, self._transform, inPlace=True)
            out[start : start + step] = np.asarray(block)
        return out


def with_profile(source: Source) -> Source:
    """The source in sRGB; where its file has no profile, or a broken one, its own pixels, with a warning that says so."""
    profile = source.icc_profile
    if profile is None:
        return _untouched(source, "absent", "source.icc is true, but the file holds no colour profile; its pixels are taken as they are.")
    try:
        transform = _transform(profile)
    except PROFILE_ERRORS as error:
        words = str(error) or type(error).__name__
        return _untouched(source, "unusable", f"the colour profile cannot be used ({words}); pixels are taken as they are.")
    return IccSource(source, transform)


def _untouched(source: Source, state: str, warning: str) -> Source:
    info = source.info
    source.info = replace(info, properties={**info.properties, "icc": state}, warnings=(*info.warnings, warning))
    return source


def _transform(profile: bytes) -> Any:
    """From the profile's RGB to sRGB, with the profile's own rendering intent."""
    _check_profile(profile)
    origin = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent(ImageCms.getDefaultIntent(origin))
    return ImageCms.buildTransform(origin, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)


def _check_profile(profile: bytes) -> None:
    """Raise ValueError for what is no RGB profile (ICC.1, section 7.2: size, colour space at 16, signature at 36)."""
    if not 128 <= len(profile) <= LARGEST_PROFILE or profile[36:40] != b"acsp":
        raise ValueError(f"{len(profile)} bytes that are no ICC profile")
    (size,) = struct.unpack_from(">I", profile)
    if size > len(profile):
        raise ValueError(f"it is cut off: {len(profile)} of {size} bytes")
    if profile[16:20] != b"RGB ":
        raise ValueError(f"it is for {profile[16:20].decode('ascii', 'replace').strip() or 'unknown'} colours, not RGB")
