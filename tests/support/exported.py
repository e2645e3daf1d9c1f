"""Exports as tests call them, and what they should hold."""

import numpy as np

import tilestream
from tests.support.qupath import read_qupath
from tilestream.interop.exports import export_slides


def export(output, name, **options):
    """Export one slide, and return its path and the words."""
    lines = list(export_slides(str(output), name, **options))
    assert len(lines) == 1
    return lines[0].split(" -> ")[1].split("; ")[0], lines[0]


def good_rows(output, slide="a"):
    """x, y and embeddings (float32) of the tiles that did not fail."""
    store = tilestream.open(f"{output}/{slide}.zarr")
    values = np.asarray(store.embeddings[:], np.float32)
    good = np.isfinite(values).all(axis=1)
    return store.positions[good][:, ::-1], values[good]


def read_features(path):
    kinds = {"annotation": [], "tile": []}
    for feature in read_qupath(path):
        assert feature["geometry"]["type"] == "Polygon"
        kinds[feature["properties"]["objectType"]].append(feature)
    return kinds["annotation"], kinds["tile"]
