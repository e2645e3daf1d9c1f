"""Objects of known place, size and class, as a head of kind detect would leave them in a store."""

import io

import numpy as np
import shapely

from tilestream.store.folder import Folder
from tilestream.store.heads.shapes import ShapeRows, join_parts, pack_part, shapes_key

CLASSES = ["tumour", 'a "quoted" class', "stroma"]


def made_rows(count, seed, *, mpp=0.25, side=5000.0, points=12):
    """Objects as rings of `points` corners, one in ten with a hole, one in ten of two pieces."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(50, side - 50, (count, 2)), rng.uniform(4, 12, count)
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    shapes = shapely.polygons(np.round(centre[:, None] + radius[:, None, None] * circle, 1))
    holes, pairs = slice(0, count, 10), slice(1, count, 10)
    shapes[holes] = shapely.difference(shapes[holes], shapely.box(*(centre[holes] - 1).T, *(centre[holes] + 1).T))
    shapes[pairs] = [shapely.multipolygons([one, shapely.transform(one, lambda xy: xy + np.array([0, 30]))]) for one in shapes[pairs]]
    return ShapeRows.of(shapes, rng.integers(0, len(CLASSES), count), rng.random(count, np.float32), mpp)


def put_objects(store, groups, head="nuclei"):
    """Write the objects of a head, a row group each of `groups`."""
    with Folder(str(store)).writing(shapes_key(head)) as path:
        return join_parts([io.BytesIO(pack_part(rows, CLASSES)) for rows in groups], path, {"head": head, "classes": CLASSES})
