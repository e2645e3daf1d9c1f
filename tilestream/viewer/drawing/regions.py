"""Regions with classes of one slide, in a file of QuPath's GeoJSON: read, added to, written."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from tilestream.errors import InputError
from tilestream.viewer.overlays import PALETTE

LARGEST_FILE = 64 * 1024**2
"""Bytes of a file of regions that is opened for drawing."""


@dataclass
class Regions:
    """The regions of one slide. What the file held before stays in it as it was, unless it is taken away here.

    Every change is written at once, beside the file first and then in its place.
    """

    path: Path
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Features as GeoJSON has them, by a key of ours."""
    others: list[Any] = field(default_factory=list)
    """Features that have no region, as points of QuPath; they are kept."""

    @classmethod
    def open(cls, path: Path) -> Regions:
        """The regions of a file; none where there is no file yet.

        Raises
        ------
        InputError
            The file is there, and is no GeoJSON that can be kept.
        """
        found = cls(path)
        if not path.exists():
            return found
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise InputError(
                    f"{path} has {path.stat().st_size >> 20} MiB, but regions to draw on are kept in memory. Choose another folder."
                )
            told = json.loads(path.read_text(encoding="utf-8"))
            features = told["features"] if isinstance(told, dict) and "features" in told else told if isinstance(told, list) else [told]
            for feature in features:
                areal = str(feature["geometry"]["type"]) in ("Polygon", "MultiPolygon")
                if areal:
                    shape(feature["geometry"])
                    found.features[found.key_of(feature)] = feature
                else:
                    found.others.append(feature)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, shapely.errors.ShapelyError) as error:
            raise InputError(
                f"{path} is no GeoJSON of regions that can be drawn on ({error}). Move it away, or choose another folder."
            ) from error
        return found

    def key_of(self, feature: dict[str, Any]) -> str:
        """The key under which a feature is kept: the same whenever the file is opened."""
        told = json.dumps(feature, sort_keys=True, allow_nan=False).encode()
        key = hashlib.blake2b(told, digest_size=12).hexdigest()
        return key if key not in self.features else self.key_of({"again": key})

    def add(self, name: str, region: BaseGeometry) -> str | None:
        """Keep one more region of a class; None where it has no area. Its outline may cross itself, as lines drawn by hand do."""
        return self.put(region, region_feature(name, region, self.classes))

    def put(self, region: BaseGeometry, feature: dict[str, Any], *, whole: bool = False) -> str | None:
        """Keep a feature with the areas of a region as its geometry, or with its own where it is `whole`; None where there is no area."""
        valid = shapely.make_valid(region)
        areas = shapely.unary_union([part for part in getattr(valid, "geoms", [valid]) if part.geom_type in ("Polygon", "MultiPolygon")])
        if areas.is_empty or areas.area < 1:
            return None
        kept = feature if whole else {**feature, "geometry": mapping(areas)}
        kept = json.loads(json.dumps(kept, allow_nan=False))  # as the file will tell it, so that its key stays the same
        key = self.key_of(kept)
        self.features[key] = kept
        return key

    def remove(self, keys: list[str]) -> None:
        """Forget regions."""
        for key in keys:
            self.features.pop(key, None)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that there are, in the order in which they came."""
        return list(dict.fromkeys(filter(None, map(class_of, self.features.values()))))

    def save(self) -> None:
        """Write the file.

        Raises
        ------
        OSError
            It cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {"type": "FeatureCollection", "features": [*self.features.values(), *self.others]}
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(told, allow_nan=False), encoding="utf-8")
        part.replace(self.path)


def region_feature(name: str, region: BaseGeometry, known: list[str]) -> dict[str, Any]:
    """A region of a class, as QuPath keeps annotations."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": mapping(region),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colour_of(name, known))},
            "isLocked": False,
        },
    }


def class_of(feature: dict[str, Any]) -> str:
    """The class of a feature, as QuPath tells it; "" where it has none."""
    told = (feature.get("properties") or {}).get("classification") or {}
    return str(told.get("name") or "/".join(told.get("names") or []))


def colour_of(name: str, known: list[str]) -> tuple[int, int, int]:
    """The colour of a class among others."""
    order = [*known, *([] if name in known else [name])]
    red, green, blue = PALETTE[order.index(name) % len(PALETTE)][:3]
    return int(red), int(green), int(blue)


def squares(y: NDArray[np.integer[Any]], x: NDArray[np.integer[Any]], side: float) -> BaseGeometry:
    """The tiles whose top-left corners these are, as one region; each is a hair larger, so that neighbours are joined."""
    return shapely.unary_union(shapely.box(x - 0.01, y - 0.01, x + side + 0.01, y + side + 0.01)).simplify(0.05)
