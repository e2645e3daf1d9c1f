"""What the OME-XML beside the images of a Zarr store says of them.

Source: https://ngff.openmicroscopy.org/0.4/#bf2raw: `OME/METADATA.ome.xml`, whose Image elements stand in the order of the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tilestream.sources.resolution import micrometres_from_unit, parse_number

METADATA = "OME/METADATA.ome.xml"


@dataclass(frozen=True)
class OmeImage:
    """One Image element."""

    name: str
    """What it is called, "" where it has no name."""
    um: tuple[float, float] | None
    """Height and width of a pixel in µm, None where they are not stated."""


def read_ome_images(group: Any) -> tuple[OmeImage, ...]:
    """The images in the order of the series; none where there is no OME-XML, or none that can be read."""
    key = f"{group.path}/{METADATA}".lstrip("/")
    found = sync(group.store.get(key, default_buffer_prototype()))
    if found is None:
        return ()
    try:
        root = ET.fromstring(found.to_bytes())  # noqa: S314  # expat bounds entities
    except (ET.ParseError, LookupError, ValueError):  # of an encoding that is none, too
        return ()
    return tuple(OmeImage(image.get("Name", "").strip(), _um(image.find("{*}Pixels"))) for image in root.findall("{*}Image"))


def _um(pixels: ET.Element | None) -> tuple[float, float] | None:
    """PhysicalSizeY and PhysicalSizeX, in µm unless a unit is given (OME schema 2016-06, Pixels)."""
    if pixels is None:
        return None
    sides = []
    for axis in "YX":
        size, unit = pixels.get(f"PhysicalSize{axis}"), micrometres_from_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None or unit is None:
            return None
        sides.append(parse_number(size)[0] * unit)
    return sides[0], sides[1]
