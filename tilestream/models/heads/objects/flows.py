"""Instances from flows: at each pixel of an object, the way to its middle. Pixels that are led to one place are one object.

Source of the idea: Stringer et al. 2021, "Cellpose: a generalist algorithm for cellular segmentation", section "Online methods".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilestream.models.heads.objects.found import Objects, objects_from_instances

STEPS = 200
"""Steps of at most one px that each pixel is led."""

INSIDE, SMALLEST = 0.5, 15
"""Probability from which on a pixel is of an object, and px of the smallest object."""

REACH, PIXELS_OF_A_SINK = 2, 10
"""Px within which two sinks are one, and pixels that a sink must draw in."""

Map = NDArray[np.floating]


def follow_flows(flow: Map, y: NDArray[np.int64], x: NDArray[np.int64], steps: int = STEPS) -> NDArray[np.float64]:
    """(2, n) y, x where the pixels y, x (n,) end that the flow (2, h, w) leads, its lengths at most 1; between pixels it is interpolated."""
    from scipy import ndimage

    field = flow.astype(np.float64) / np.maximum(np.sqrt((flow.astype(np.float64) ** 2).sum(axis=0)), 1.0)
    place = np.stack([y, x]).astype(np.float64)
    limit = np.array(flow.shape[1:], np.float64)[:, None] - 1
    for _ in range(steps):
        step = np.stack([ndimage.map_coordinates(each, place, order=1, mode="nearest") for each in field])
        place = np.clip(place + step, 0.0, limit)
    return place


def instances_from_flows(inside: NDArray[np.bool_], flow: Map) -> NDArray[np.int32]:
    """(h, w) numbered objects, 0 where there is none."""
    from scipy import ndimage

    labels = np.zeros(inside.shape, np.int32)
    y, x = np.nonzero(inside)
    if not len(y):
        return labels
    end = np.rint(follow_flows(flow, y, x)).astype(np.int64)
    drawn = np.zeros(inside.shape, np.int64)
    np.add.at(drawn, (end[0], end[1]), 1)
    near = ndimage.uniform_filter(drawn.astype(np.float64), 2 * REACH + 1, mode="constant") * (2 * REACH + 1) ** 2
    # A sink is what draws in most pixels round about; what comes to rest near it belongs to it.
    peaks = (near == ndimage.maximum_filter(near, 2 * REACH + 1)) & (near >= PIXELS_OF_A_SINK - 0.5)
    sinks, count = ndimage.label(ndimage.binary_dilation(peaks, np.ones((3, 3))), np.ones((3, 3)))
    if count == 0:
        return labels
    away, (to_y, to_x) = ndimage.distance_transform_edt(sinks == 0, return_indices=True)
    number = np.where(away[end[0], end[1]] <= 2 * REACH, sinks[to_y[end[0], end[1]], to_x[end[0], end[1]]], 0)
    large = np.bincount(number, minlength=count + 1) >= SMALLEST
    large[0] = False
    renamed = np.where(large, np.cumsum(large), 0)
    labels[y, x] = renamed[number]
    return labels


def objects_from_flows(probability: Map, flow: Map, types: Map | None = None) -> Objects:
    """Objects from the probability (h, w) of being inside one, the flow (2, h, w) y, x, and optionally scores of classes (C, h, w).

    The score is the mean probability of an object's pixels; its class is that of the largest mean.
    """
    from scipy import ndimage

    labels = instances_from_flows(probability >= INSIDE, flow)
    numbers = np.arange(1, int(labels.max(initial=0)) + 1)
    if not len(numbers):
        return Objects.none()
    scores = np.asarray(ndimage.mean(probability, labels, numbers), np.float32)
    kinds = np.zeros(len(numbers), np.int64)
    if types is not None:
        kinds = np.stack([np.asarray(ndimage.mean(each, labels, numbers)) for each in types]).argmax(axis=0)
    return objects_from_instances(labels, kinds, scores)
