"""Colour profiles for tests."""

from functools import cache

from PIL import ImageCms


@cache
def srgb_profile() -> bytes:
    """The same within a process: a new one holds the time of its making."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def odd_profile() -> bytes:
    """sRGB with its red and blue primaries exchanged: a conversion changes every pixel that is not grey."""
    raw = bytearray(srgb_profile())
    count = int.from_bytes(raw[128:132], "big")
    entries = {bytes(raw[132 + 12 * k : 136 + 12 * k]): 132 + 12 * k for k in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    raw[red : red + 4], raw[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(raw)
