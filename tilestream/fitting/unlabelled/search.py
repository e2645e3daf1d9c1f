"""The tiles of an output that are most like some vectors, as a table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError
from tilestream.fitting.unlabelled.neighbour_index import open_index
from tilestream.fitting.unlabelled.neighbours import nearest_tiles, opened_slides

if TYPE_CHECKING:
    import pandas as pd

PROBES = 16
"""Cells of an index that are looked into."""


def find_nearest(
    output: str | os.PathLike[str],
    vectors: NDArray[np.floating[Any]],
    count: int = 10,
    what: str = "tiles",
    *,
    index: str | os.PathLike[str] | None = None,
    probes: int = PROBES,
) -> pd.DataFrame:
    """The tiles of an output that are most like some vectors; all are compared, block by block, or with an index those that it has in like cells.

    Parameters
    ----------
    output : path or URL
        The `output` of a run, or one slide of it.
    vectors : (q, d) or (d,)
        What is looked for, e.g. `tilestream.open(output)["a"].embeddings[7]`.
    count : int
        Tiles of each.
    what : str
        Which vectors: tiles or context.
    index : path, optional
        What `index_tiles` wrote of this output. Some of the nearest tiles may then be missed; cosines are exact.
    probes : int
        Cells of the index that are read for each vector; with all of them nothing is missed.

    Returns
    -------
    pandas.DataFrame
        query, slide, tile (its row), y, x (level-0 px of its top-left) and cosine; by query, the nearest first.

    Raises
    ------
    InputError
        There is no output, its vectors have another length, or the index is not of what it holds now.
    """
    import pandas as pd

    slides = opened_slides(output)
    queries = np.atleast_2d(np.asarray(vectors, np.float64))
    for slide in slides:
        if slide.vectors(what).shape[1] != queries.shape[1]:
            raise InputError(f"vectors have {queries.shape[1]} features, but those of {slide.id} have {slide.vectors(what).shape[1]}.")
    if index is None:
        nearest = nearest_tiles(slides, queries, count, what)
    else:
        known = open_index(index)
        known.refuse_others(slides, what)
        nearest = known.nearest(queries, count, probes)
    hits = [(q, slides[i], row, cosine) for q, near in enumerate(nearest) for i, row, cosine in near]
    places = [slide.positions[row].tolist() for _, slide, row, _ in hits]
    rows = [(q, slide.id, row, y, x, cosine) for (q, slide, row, cosine), (y, x) in zip(hits, places, strict=True)]
    return pd.DataFrame(rows, columns=["query", "slide", "tile", "y", "x", "cosine"])
