"""The layers of a slide by name: which there are, and what each lays over the slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilestream.viewer.answers import CLASSES, DENSITY, LABELS, OBJECTS, answer_layer, class_counts, density_layer, head_overlays
from tilestream.viewer.clusters import cluster
from tilestream.viewer.overlays import (
    MIXED,
    Legend,
    PictureLayer,
    TileLayer,
    attention_layer,
    cluster_layer,
    component_layer,
    mixed_layer,
    mixed_vectors,
    status_layer,
    tissue_layer,
    window_layer,
    window_sides,
)
from tilestream.viewer.slide import ViewedSlide

STATUS, MASK, EMBEDDINGS, CLUSTERS, SIMILARITY, ATTENTION, WINDOWS = (
    "status", "mask", "embeddings", "clusters", "similarity", "attention", "windows ",
)  # fmt: skip


@dataclass(frozen=True)
class ZoomLayer:
    """Objects or labels, which come tile by tile."""

    head: int
    """Place of the head in the order of names."""
    legend: Legend


Layer = TileLayer | PictureLayer | ZoomLayer


def layer_names(slide: ViewedSlide) -> list[dict[str, str]]:
    """Key and name of each layer of a slide, in the order in which they are offered."""
    known = [(SIMILARITY, "similarity"), (CLUSTERS, "clusters"), (EMBEDDINGS, "embeddings as colours")] if slide.embedded else []
    known += [(key, key) for key in head_overlays(slide)]
    known += [(what, f"{what} as colours") for what in mixed_vectors(slide)]
    known += [(ATTENTION, "attention")] if slide.attention is not None else []
    known += [(f"{WINDOWS}{side}", f"windows of {side} tokens") for side in window_sides(slide)]
    known += [(STATUS, "status of tiles"), (MASK, f"{slide.mask_word} mask")]
    return [{"key": key, "name": name} for key, name in known]


def make_layer(slide: ViewedSlide, key: str, k: int) -> Layer | None:
    """The layer of a key, with `k` groups; None where the slide has no such layer. What is like a tile is asked for with that tile."""
    if key == SIMILARITY or key not in {each["key"] for each in layer_names(slide)}:
        return None
    name = key.partition(": ")[2]
    if key.startswith((OBJECTS, LABELS)):
        return ZoomLayer(sorted(slide.heads).index(name), Legend("", tuple(class_counts(slide, key))))
    named: dict[str, Callable[[ViewedSlide, str], Layer]] = {CLASSES: answer_layer, DENSITY: density_layer}
    for begins, make in named.items():
        if key.startswith(begins):
            return make(slide, name)
    if key.startswith(MIXED):
        return mixed_layer(slide, key)
    makers: dict[str, Callable[[], Layer]] = {
        CLUSTERS: lambda: cluster_layer(cluster(slide.scores(), k)),
        EMBEDDINGS: lambda: component_layer(slide.scores(), slide.good),
        STATUS: lambda: status_layer(slide.status),
        MASK: lambda: tissue_layer(slide),
        ATTENTION: lambda: attention_layer(slide),
    }
    return makers[key]() if key in makers else window_layer(slide, int(key.removeprefix(WINDOWS)))
