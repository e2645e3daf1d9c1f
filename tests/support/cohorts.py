"""Made cohorts with a known signal: stores of slides of two kinds, and the score that knows where the signal is."""

import csv

import numpy as np

from tests.support.stores import make_store
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore

SLIDES, PATIENTS, SIDE, DIM = 60, 30, 6, 8


def write_rows(path, values, **about):
    """A finished store of SIDE x SIDE tiles with these vectors."""
    make_store(path, SIDE, SIDE, dim=values.shape[1], finish=False, **about)
    store = SlideStore(Folder(str(path)))
    store.write_shard(
        0, {"tables/tiles/X": values.astype(np.float32), "tables/tiles/obs/status/codes": np.zeros(len(values), np.int8)}, {"counts": {}}
    )
    store.seal()
    store.complete({"tiles": len(values), "counts": {}})


def write_cohort(folder, *, shift, share=1.0, patient=0.3, seed=0):
    """60 slides of 30 patients, two each, every second patient of the kind b: a share of the tiles of b is shifted along one direction.

    Every patient and every tile has noise of its own. `labels.csv` has the columns slide, patient and kind.

    Returns
    -------
    x : (60, tiles, d)
        The vectors.
    label : (60,)
        1 for b.
    direction : (d,)
        Where the signal is.
    """
    chance = np.random.default_rng(seed)
    direction = np.zeros(DIM)
    direction[[1, 4]] = 0.6, 0.8
    owner = np.arange(SLIDES) // 2
    label = owner % 2
    own = chance.normal(scale=patient, size=(PATIENTS, DIM))
    x = chance.normal(size=(SLIDES, SIDE * SIDE, DIM)) + own[owner][:, None]
    shifted = chance.random((SLIDES, SIDE * SIDE)) < share
    x += shift * (label[:, None] & shifted)[..., None] * direction
    for i in range(SLIDES):
        write_rows(folder / "out" / f"s{i:02}.zarr", x[i], fingerprint=f"image{i}")
    write_labels(folder / "labels.csv", label)
    return x, label, direction


def write_labels(path, label):
    """A table of slides, their patients and kinds."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["slide", "patient", "kind"], *([f"s{i:02}", f"p{i // 2:02}", "ab"[k]] for i, k in enumerate(label))])
