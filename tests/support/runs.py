"""Runs of the whole program in tests."""

import json

import numpy as np

import tilestream

MEAN_RGB = "tests.support.encoders:mean_rgb"


def config(slides, output, /, **sections):
    """A config that keeps every tile, in this process, unless `sections` say otherwise."""
    base = {
        "slides": str(slides) if not isinstance(slides, list) else [str(s) for s in slides],
        "output": {"path": str(output), "dtype": "float32"},
        "tiles": {"size": 224, "level": 0, "tissue": "none"},
        "encoder": MEAN_RGB,
        "pool": "none",
        "compute": {"scheduler": "inline", "threads": 2},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return base


def embed(slides, output, /, **sections):
    """Run and return the summary."""
    return tilestream.run(config(slides, output, **sections))


def newest_record(output):
    """What the last run said that did something."""
    return json.loads(max((output / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns).read_text())


def opened(output, slide):
    return tilestream.open(f"{output}/{slide}.zarr")


def same_store(a, b):
    """Whether two stores hold the same rows, NaN included; the slides may have other ids."""
    arrays = [(x.embeddings[:], y.embeddings[:]) for x, y in [(a, b)]]
    if a.context is not None:
        arrays.append((a.context[:], b.context[:]))
    rows = [store.obs.drop(columns="slide").reset_index(drop=True) for store in (a, b)]
    return all(np.array_equal(x, y, equal_nan=True) for x, y in arrays) and rows[0].equals(rows[1])


CORNERS = {
    "tiles": {"size": 64, "level": 0, "tissue": "none"},
    "encoder": "tests.support.encoders:corners",
    "pool": "mean",
    "compute": {"shard_tiles": 16},
}


def given(image, output, /, **sections):
    """A config of tiles of 64 px whose vectors are their corners, in shards of 16, unless `sections` say otherwise."""
    base = config(image, output, **CORNERS)
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return base


def bytes_of(folder):
    """Every file below a folder, by its path there."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
