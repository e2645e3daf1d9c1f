"""What `fit` leaves beside a head of clusters: sizes by slide, typical tiles, outliers and duplicates."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np

from tilestream.fitting.pictures import fill_page, tile_picture
from tilestream.fitting.unlabelled.clusters import Clusters
from tilestream.fitting.unlabelled.neighbours import nearest_tiles
from tilestream.store.slide import Slide

TYPICAL = 6
"""Tiles that are shown of each cluster."""

SHOWN = 24
"""Outliers, and pairs of duplicates, that are shown; the JSON lists more."""


def clusters_texts(
    name: str, about: str, slides: Sequence[Slide], what: str, found: Clusters, duplicates: Sequence[tuple[int, int, int, int, float]]
) -> dict[str, str]:
    """The files beside the head, by what they hold: metrics (JSON), predictions (CSV, tiles of each slide by cluster) and report (HTML)."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["slide", *(f"cluster {k + 1}" for k in range(len(found.centres)))])
    out.writerows([slide.id, *counts] for slide, counts in zip(slides, found.counts.tolist(), strict=True))
    told = {
        "tilestream": "fit",
        "head": name,
        "clusters": [{"tiles": int(n), "spread": float(s)} for n, s in zip(found.counts.sum(axis=0), found.spread, strict=True)],
        "outliers": [{"slide": slides[i].id, "tile": row, "cluster": own + 1, "distance": far} for i, row, own, far in found.outliers],
        "duplicates": [{"slides": [slides[i].id, slides[j].id], "tiles": [a, b], "cosine": cosine} for i, a, j, b, cosine in duplicates],
    }
    return {
        "metrics": json.dumps(told, indent=1, ensure_ascii=False),
        "predictions": text.getvalue(),
        "report": _page(name, about, slides, what, found, duplicates),
    }


def _page(
    name: str, about: str, slides: Sequence[Slide], what: str, found: Clusters, duplicates: Sequence[tuple[int, int, int, int, float]]
) -> str:
    typical = nearest_tiles(slides, found.centres, TYPICAL, what)
    total = max(1, int(found.counts.sum()))
    rows = []
    for k, near in enumerate(typical):
        count = int(found.counts[:, k].sum())
        pictures = "".join(tile_picture(slides[i], row) for i, row, _ in near)
        rows.append(
            f"<tr><td>cluster {k + 1}</td><td>{count:,}</td><td>{count / total:.1%}</td><td>{int((found.counts[:, k] > 0).sum())}</td><td>{pictures}</td></tr>"
        )
    far = "".join(
        f"<tr><td>{tile_picture(slides[i], row)}</td><td>{escape(slides[i].id)}</td><td>{row}</td><td>{own + 1}</td><td>{distance:.2f}</td></tr>"
        for i, row, own, distance in found.outliers[:SHOWN]
    )
    same = "".join(
        f"<tr><td>{tile_picture(slides[i], a)}{tile_picture(slides[j], b)}</td><td>{escape(slides[i].id)}</td><td>{a}</td><td>{escape(slides[j].id)}</td>"
        f"<td>{b}</td><td>{np.floor(cosine * 1e5) / 1e5:.5f}</td></tr>"
        for i, a, j, b, cosine in duplicates[:SHOWN]
    )
    return fill_page(
        "clusters.html",
        title=escape(f"Clusters {name}"),
        about=escape(about),
        clusters="".join(rows),
        outliers=far,
        duplicates=same or "<tr><td>none among the tiles that were compared</td></tr>",
    )
