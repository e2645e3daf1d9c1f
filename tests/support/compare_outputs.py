"""Whether an output holds what another one does, by zarr alone: `python -m tests.support.compare_outputs URL FOLDER` prints what differs, as JSON."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import zarr
from obstore.store import from_url
from zarr.storage import LocalStore, ObjectStore

TABLE = "tables/tiles"
ARRAYS = [
    f"{TABLE}/X",
    f"{TABLE}/obsm/spatial",
    *(f"{TABLE}/obs/{name}" for name in ("row", "col", "y", "x", "tissue", "status/codes")),
    "tables/slide/X",
]


def rows(store):
    """The arrays of a slide by their path."""
    return {path: np.asarray(zarr.open_array(store, path=path, mode="r", zarr_format=3)[...]) for path in ARRAYS}


def compare(there, here):
    """What of one slide is not the same."""
    found, wanted = rows(there), rows(here)
    wrong = [path for path in ARRAYS if not np.array_equal(found[path], wanted[path], equal_nan=found[path].dtype.kind == "f")]
    places = set(zip(found[f"{TABLE}/obs/row"].tolist(), found[f"{TABLE}/obs/col"].tolist(), strict=True))
    return wrong + [f"{len(found[f'{TABLE}/X'])} rows at {len(places)} places"] * (len(places) != len(found[f"{TABLE}/X"]))


def main(address, folder):
    store = from_url(address, client_options={"allow_http": True})
    names = [prefix.rstrip("/") for prefix in obstore.list_with_delimiter(store)["common_prefixes"] if prefix.endswith(".zarr")]
    wanted = sorted(path.name for path in Path(folder).glob("*.zarr"))
    told = [f"{name} is in one of them only" for name in sorted(set(names) ^ set(wanted))]

    def look(name):
        there = from_url(f"{address}/{name}", client_options={"allow_http": True})
        obstore.head(there, ".tilestream/complete.json")
        return [
            f"{name}: {words}" for words in compare(ObjectStore(there, read_only=True), LocalStore(Path(folder) / name, read_only=True))
        ]

    with ThreadPoolExecutor(8) as pool:
        for words in pool.map(look, sorted(set(names) & set(wanted))):
            told += words
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
