"""The pooled vector of a slide (d,) float32, in the formats that hold one.

HDF5 is in the form of TRIDENT's slide features: one dataset `features` (d,). Source: https://github.com/mahmoodlab/TRIDENT (its outputs).
"""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tilestream.interop.columns import load_pyarrow
from tilestream.interop.hdf5 import new_hdf5
from tilestream.interop.target import Target, Written
from tilestream.store.slide import Slide


def slide_vector(slide: Slide) -> NDArray[np.float32]:
    """(d,) the pooled vector; NaN where the slide has no tile."""
    return np.asarray(slide.vectors()[0], np.float32)


def write_trident_vector(slide: Slide, target: Target) -> Written:
    """`features` (d,) float32 with the attributes name, savetodir and encoder."""
    with target.writing() as path, new_hdf5(path) as (file, _):
        features = file.create_dataset("features", data=slide_vector(slide))
        features.attrs.update({"name": slide.id, "savetodir": str(target.path.parent), "encoder": slide.encoder})
    return Written(slide.layout.tiles)


def write_tensor_vector(slide: Slide, target: Target) -> Written:
    """A tensor (d,) float32 that `torch.load` reads, with `weights_only` too."""
    import torch

    with target.writing() as path:
        torch.save(torch.from_numpy(slide_vector(slide)), path)
    return Written(slide.layout.tiles)


def write_csv_vector(slide: Slide, target: Target) -> Written:
    """A header and one line: slide, f0 to f<d-1>."""
    with target.writing() as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slide", *(f"f{k}" for k in range(slide.vectors().shape[1]))])
        writer.writerow([slide.id, *(f"{value:.9g}" if np.isfinite(value) else "" for value in slide_vector(slide).tolist())])
    return Written(slide.layout.tiles)


def write_parquet_vector(slide: Slide, target: Target) -> Written:
    """One row: slide, f0 to f<d-1>. Raises ConfigError where pyarrow is not installed."""
    pa, pq = load_pyarrow("parquet")
    columns = {f"f{k}": pa.array([value], pa.float32()) for k, value in enumerate(slide_vector(slide).tolist())}
    with target.writing() as path:
        pq.write_table(pa.table({"slide": [slide.id], **columns}), path)
    return Written(slide.layout.tiles)


VECTOR_WRITERS: dict[str, Callable[[Slide, Target], Written]] = {
    "trident-h5": write_trident_vector,
    "pt": write_tensor_vector,
    "parquet": write_parquet_vector,
    "csv": write_csv_vector,
}
"""Formats that a slide's vector is exported to."""
