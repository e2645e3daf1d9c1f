"""What QuPath asks of a GeoJSON file, from its documentation (exporting annotations), with shapely as the judge of every polygon."""

import gzip
import json
import math
import uuid
from pathlib import Path

import shapely

OBJECT_TYPES = {"annotation", "detection", "cell", "tile"}


def read_qupath(path):
    """The features of a file, each held against the form."""
    raw = Path(path).read_bytes()
    found = json.loads(gzip.decompress(raw) if Path(path).suffix == ".gz" else raw)
    assert found["type"] == "FeatureCollection"
    for feature in found["features"]:
        assert set(feature) <= {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        if "id" in feature:
            uuid.UUID(feature["id"])
        _check_properties(feature["properties"])
        geometry = feature["geometry"]
        if geometry["type"] == "Polygon":
            assert all(len(ring) >= 4 and ring[0] == ring[-1] for ring in geometry["coordinates"])
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in found["features"]])
    assert shapely.is_valid(shapes).all()
    assert not shapely.is_empty(shapes).any()
    return found["features"]


def _check_properties(told):
    assert told["objectType"] in OBJECT_TYPES
    assert isinstance(told.get("isLocked", False), bool)
    for name, value in told.get("measurements", {}).items():
        assert isinstance(name, str)
        assert isinstance(value, int | float)
        assert math.isfinite(value)
    if "classification" in told:
        assert isinstance(told["classification"]["name"], str)
        red, green, blue = told["classification"]["color"]
        assert all(isinstance(part, int) and 0 <= part <= 255 for part in (red, green, blue))
