"""Objects of a patch, whatever a detector gives: boxes, polygons or an instance image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilestream.models.heads.outlines import trace_labels

FORM = "boxes (m, 4) y0 x0 y1 x1 px, scores (m,), classes (m,), and optionally polygons (m times (k, 2) y x px) or an instance image (S, S)"


@dataclass(frozen=True)
class Objects:
    """What was found in a patch or a slide, m objects."""

    boxes: NDArray[np.float64]
    """(m, 4) y0, x0, y1, x1 in px, the ends excluded."""
    scores: NDArray[np.float32]
    """(m,)"""
    classes: NDArray[np.int64]
    """(m,) place of each one's class in the list of classes."""
    shapes: NDArray[np.object_]
    """(m,) shapely geometries of x, y in the same px."""

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def none(cls) -> Objects:
        """No objects."""
        return cls(np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, object))

    @classmethod
    def joined(cls, parts: Sequence[Objects]) -> Objects:
        """All objects of several, in their order."""
        parts = [Objects.none(), *parts]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "classes", "shapes")))

    def take(self, which: NDArray[Any]) -> Objects:
        """Some of the objects: a mask, or places."""
        return Objects(self.boxes[which], self.scores[which], self.classes[which], self.shapes[which])

    def moved(self, y: float, x: float, scale: float = 1.0) -> Objects:
        """The same in px of another frame, `scale` of them a px, in which the patch begins at y, x."""
        import shapely

        boxes = self.boxes * scale + np.array([y, x, y, x])
        return Objects(boxes, self.scores, self.classes, shapely.transform(self.shapes, lambda xy: xy * scale + (x, y)))

    @property
    def centres(self) -> NDArray[np.float64]:
        """(m, 2) y, x of the middle of each box."""
        middle: NDArray[np.float64] = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        return middle

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(np.isfinite(self.boxes).all() and np.isfinite(self.scores).all())


def objects_from_instances(labels: NDArray[np.integer], classes: NDArray[np.int64], scores: NDArray[np.float32]) -> Objects:
    """Objects of an instance image (h, w), in which j + 1 are the pixels of object j; objects without a pixel are left out."""
    import shapely

    traced = trace_labels(labels)
    if not len(traced.labels):
        return Objects.none()
    order = np.argsort(traced.labels, kind="stable")
    values, starts, counts = np.unique(traced.labels[order], return_index=True, return_counts=True)
    if values[-1] > len(classes):
        raise ValueError(f"the instance image holds the value {values[-1]}, but there are {len(classes)} objects")
    pieces = traced.polygons[order]
    shapes = pieces[starts]
    for k in np.flatnonzero(counts > 1).tolist():
        shapes[k] = shapely.multipolygons(pieces[starts[k] : starts[k] + counts[k]])
    x0, y0, x1, y1 = shapely.bounds(shapes).T
    return Objects(np.stack([y0, x0, y1, x1], axis=1), scores[values - 1].astype(np.float32), classes[values - 1].astype(np.int64), shapes)


def read_objects(given: Any, classes: int, side: int) -> Objects:
    """What a detector gave for one patch, as objects.

    Parameters
    ----------
    given : sequence, mapping or Objects
        See `FORM`; as a mapping, with the keys boxes, scores, classes, and polygons or instances.
    classes : int
        How many there are.
    side : int
        Of the patch, px.

    Raises
    ------
    ValueError
        It is of another form.
    """
    if isinstance(given, Objects):
        return given
    boxes, scores, kinds, polygons, instances = _parts(given)
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or scores.shape != (len(boxes),) or kinds.shape != (len(boxes),):
        raise ValueError(f"boxes are {boxes.shape}, scores {scores.shape}, classes {kinds.shape}; a detector gives {FORM}")
    if len(kinds) and not 0 <= kinds.min() <= kinds.max() < classes:
        raise ValueError(f"classes are from {kinds.min()} to {kinds.max()}, but there are {classes} classes, counted from 0")
    if instances is not None:
        if instances.shape != (side, side) or instances.dtype.kind not in "iu":
            raise ValueError(f"the instance image is {instances.shape} {instances.dtype}, not ({side}, {side}) of a whole-number type")
        return objects_from_instances(instances, kinds, scores)
    found = Objects(boxes, scores, kinds, _boxes(boxes))
    if polygons is None or not found.finite:
        return found
    if len(polygons) != len(boxes):
        raise ValueError(f"{len(polygons)} polygons for {len(boxes)} boxes")
    return Objects(boxes, scores, kinds, _polygons(polygons))


def _parts(given: Any) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64], list[Any] | None, NDArray[Any] | None]:
    """Boxes, scores, classes, and polygons or an instance image."""
    if isinstance(given, Mapping):
        if not {"boxes", "scores", "classes"} <= given.keys():
            raise ValueError(f"a mapping with {', '.join(map(str, given))}; a detector gives {FORM}")
        first, polygons, instances = [given[key] for key in ("boxes", "scores", "classes")], given.get("polygons"), given.get("instances")
    elif isinstance(given, Sequence) and 3 <= len(given) <= 4:
        first, more = list(given[:3]), given[3] if len(given) == 4 else None
        is_image = more is not None and getattr(more, "ndim", 0) == 2
        polygons, instances = (None, more) if is_image else (more, None)
    else:
        raise ValueError(f"{type(given).__name__}; a detector gives {FORM}")
    boxes, scores, kinds = (array_of(value) for value in first)
    shaped = boxes.reshape(0, 4) if not boxes.size else boxes
    return (
        shaped.astype(np.float64), scores.astype(np.float32), kinds.astype(np.int64),
        None if polygons is None else list(polygons), None if instances is None else array_of(instances),
    )  # fmt: skip


def array_of(value: Any) -> NDArray[Any]:
    """A tensor, an array or a list as an array on the host."""
    return np.asarray(value.detach().cpu().float().numpy() if hasattr(value, "detach") and value.is_floating_point() else
                      value.detach().cpu().numpy() if hasattr(value, "detach") else value)  # fmt: skip


def _boxes(boxes: NDArray[np.float64]) -> NDArray[np.object_]:
    import shapely

    y0, x0, y1, x1 = boxes.T
    found: NDArray[np.object_] = shapely.box(x0, y0, x1, y1)
    return found


def _polygons(polygons: Sequence[Any]) -> NDArray[np.object_]:
    """(m,) polygons of y, x corners; those that cross themselves are made valid."""
    import shapely

    rings = [array_of(ring).astype(np.float64).reshape(-1, 2)[:, ::-1] for ring in polygons]
    if short := [len(ring) for ring in rings if len(ring) < 3]:
        raise ValueError(f"a polygon of {short[0]} corners; three or more are needed")
    lengths = [len(ring) for ring in rings]
    closed = shapely.linearrings(np.concatenate(rings) if rings else np.empty((0, 2)), indices=np.repeat(np.arange(len(rings)), lengths))
    found: NDArray[np.object_] = shapely.polygons(closed)
    return np.where(shapely.is_valid(found), found, shapely.buffer(found, 0.0))
