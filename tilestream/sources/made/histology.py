"""Made-up H&E tissue: seamless textures of five tissue kinds, and the map of which kind lies where.

Nothing here is learned or copied from a slide: nuclei are ellipses, fibres are ridges of filtered noise, glands are
rings around jittered points. Sizes are micrometres, so that a nucleus has about 8 µm whatever the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("background", "stroma", "epithelium", "lymphoid", "fat", "blood")
"""Name of each label: 0 is the glass, 1 fibrous stroma, 2 glands with lumens, 3 packed lymphocytes, 4 fat, 5 red cells."""

LABEL_CELL = 64
"""Level-0 pixels a side of one cell of the label map."""

TISSUE_FRACTION = 0.5
"""Share of an image that is tissue."""

SITES = 5
"""Rows and columns of jittered sites whose nearest-neighbour cells are patches of one kind."""

Axis = NDArray[np.floating[Any]]
"""(n,) coordinates as fractions of the image."""

Plane = NDArray[np.float32]
"""(period, period) float32, periodic."""


Patch = tuple[tuple[NDArray[np.intp], ...], NDArray[np.float32], NDArray[np.float32]]
"""Wrapped index of a square around a point, and dy (h, 1) and dx (1, w) from the point, px."""


@dataclass(frozen=True)
class Canvas:
    """A square that is painted on; what leaves it on one side comes back on the other."""

    rng: np.random.Generator
    um: float
    """Pixels a micrometre."""
    period: int
    """Side, px."""


def choose_period(height: int, width: int, mpp: float) -> int:
    """Pixels after which a texture repeats: 2048 (8 x 8 file tiles of 256 px), or 1024 for a small image."""
    return 1024 if max(height, width) <= 4096 and mpp >= 0.2 else 2048


def make_texture(kind: int, seed: int, mpp: float, period: int) -> NDArray[np.uint8]:
    """(period, period, 3) uint8 pixels of one kind (an index into `KINDS`), seamless when repeated.

    Memory: about 20 planes of float32 (330 MB for a period of 2048) at the height of the work.
    """
    canvas = Canvas(np.random.default_rng([seed, kind]), 1 / mpp, period)
    painters = (_background, _stroma, _epithelium, _lymphoid, _fat, _blood)
    colour = painters[kind](canvas)
    if kind:
        colour += (4 * _noise(canvas, 0.6, 0.6) + 3 * _noise(canvas, 12, 12))[..., None]
    pixels: NDArray[np.uint8] = np.clip(colour + 0.5, 0, 255).astype(np.uint8)
    return pixels


def make_labels(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """(ceil(height / 64), ceil(width / 64)) uint8: the kind at each cell, for an image of `height` x `width` px.

    Where a kind lies depends on the seed and on the place as a fraction of the image. The tissue is where a smooth random
    field is above its median; patches of kinds are the nearest-neighbour cells of jittered sites, seen through a smooth warp.
    """
    rng = np.random.default_rng([seed, len(KINDS)])
    field, warp_y, warp_x = _waves(rng, 14, 3.2), _waves(rng, 20, 9), _waves(rng, 20, 9)
    lattice = (np.arange(256, dtype=np.float32) + 0.5) / 256
    level = np.quantile(_tissue_field(field, lattice, lattice), 1 - TISSUE_FRACTION)
    site = (np.stack(list(np.mgrid[:SITES, :SITES]), -1).reshape(-1, 2) + rng.uniform(0.2, 0.8, (SITES**2, 2))) / SITES
    at_site = np.array([_tissue_field(field, y[None], x[None])[0, 0] for y, x in site.astype(np.float32)])
    kind = np.empty(SITES**2, np.uint8)
    kind[np.argsort(-at_site)] = np.resize(1 + rng.permutation(len(KINDS) - 1), SITES**2)  # each kind lies at a site that is tissue
    rows, cols = math.ceil(height / LABEL_CELL), math.ceil(width / LABEL_CELL)
    labels = np.empty((rows, cols), np.uint8)
    x = (np.arange(cols, dtype=np.float32) + 0.5) * LABEL_CELL / width
    for first in range(0, rows, 64):
        y = (np.arange(first, min(first + 64, rows), dtype=np.float32) + 0.5) * LABEL_CELL / height
        warped_y = y[:, None] + 0.05 * _sum_waves(warp_y, y, x)
        warped_x = x[None] + 0.05 * _sum_waves(warp_x, y, x)
        nearest, best = np.zeros((len(y), cols), np.uint8), np.full((len(y), cols), np.inf, np.float32)
        for (site_y, site_x), k in zip(site.astype(np.float32), kind, strict=True):
            distance = (warped_y - site_y) ** 2 + (warped_x - site_x) ** 2
            nearest[distance < best] = k
            np.minimum(best, distance, out=best)
        labels[first : first + len(y)] = np.where(_tissue_field(field, y, x) > level, nearest, 0)
    return labels


def _waves(rng: np.random.Generator, count: int, fastest: float) -> NDArray[np.float32]:
    """(count, 4) float32: frequency y and x (cycles an image, length up to `fastest`), phase, amplitude of plane waves."""
    angle = rng.uniform(0, 2 * np.pi, count)
    frequency = rng.uniform(0.15, 1, count) * fastest
    amplitude = 1 / (1 + frequency)
    columns = (
        np.sin(angle) * frequency,
        np.cos(angle) * frequency,
        rng.uniform(0, 2 * np.pi, count),
        amplitude / np.linalg.norm(amplitude),
    )
    return np.stack(columns, -1).astype(np.float32)


def _sum_waves(waves: NDArray[np.float32], y: Axis, x: Axis) -> NDArray[np.float32]:
    """(len(y), len(x)) float32 with a standard deviation of about 0.7; y and x as fractions of the image."""
    total = np.zeros((len(y), len(x)), np.float32)
    for wave_y, wave_x, phase, amplitude in waves:
        total += amplitude * np.cos(2 * np.pi * (wave_y * y[:, None] + wave_x * x[None]) + phase, dtype=np.float32)
    return total


def _tissue_field(waves: NDArray[np.float32], y: Axis, x: Axis) -> NDArray[np.float32]:
    """(len(y), len(x)) float32, higher where tissue is likelier: waves, and glass along the border."""
    border = np.maximum(np.abs(2 * y - 1)[:, None], np.abs(2 * x - 1)[None]) ** 8
    field: Plane = _sum_waves(waves, y, x) - 4 * border.astype(np.float32)
    return field


def _noise(canvas: Canvas, um_y: float, um_x: float) -> Plane:
    """Periodic Gaussian-filtered white noise, mean 0 and standard deviation 1; sigmas in µm."""
    side = (canvas.period, canvas.period)
    spectrum = np.fft.rfft2(canvas.rng.standard_normal(side, np.float32))
    y, x = np.fft.fftfreq(canvas.period), np.fft.rfftfreq(canvas.period)
    spectrum *= np.exp(-2 * (np.pi * um_y * canvas.um * y) ** 2).astype(np.float32)[:, None]
    spectrum *= np.exp(-2 * (np.pi * um_x * canvas.um * x) ** 2).astype(np.float32)[None]
    spectrum[0, 0] = 0
    plane = np.fft.irfft2(spectrum, side).astype(np.float32)
    plane /= plane.std()
    return plane


def _mix(first: NDArray[np.float32], second: tuple[int, int, int], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w, 3) float32: `first` ((h, w, 3) or (3,)) with `share` (h, w) in 0..1 of the colour `second`."""
    mixed: NDArray[np.float32] = first + share[..., None] * (np.array(second, np.float32) - first)
    return mixed


def _rgb(*value: int) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def _ramp(plane: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, linear between."""
    ramp: Plane = np.clip((plane - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp


def _points(canvas: Canvas, spacing: float, jitter: float) -> NDArray[np.float64]:
    """(n, 2) jittered hexagonal lattice on the torus, px; `jitter` as a fraction of the spacing."""
    cols = max(2, round(canvas.period / spacing))
    rows = max(2, 2 * round(canvas.period / spacing / 2 / 0.87))  # an even number: every second row is shifted by half a step
    grid = np.stack(list(np.mgrid[:rows, :cols]), -1).astype(np.float64)
    grid[1::2, :, 1] += 0.5
    grid += canvas.rng.uniform(-jitter, jitter, grid.shape)
    points: NDArray[np.float64] = (grid * (canvas.period / rows, canvas.period / cols)).reshape(-1, 2)
    return points


def _around(canvas: Canvas, points: NDArray[np.float64], reach: NDArray[np.float64]) -> Iterator[Patch]:
    """For each point, the wrapped index of the square within `reach` px of it, and dy (a column), dx (a row) to the point."""
    for (y, x), radius in zip(points, reach, strict=True):
        ys = np.arange(math.floor(y - radius), math.ceil(y + radius) + 1)
        xs = np.arange(math.floor(x - radius), math.ceil(x + radius) + 1)
        yield np.ix_(ys % canvas.period, xs % canvas.period), (ys - y).astype(np.float32)[:, None], (xs - x).astype(np.float32)[None]


def _ellipses(canvas: Canvas, points: NDArray[np.float64], radius: float, stretch: float, tilt: float = np.pi) -> Plane:
    """Cover of soft-edged ellipses in 0..1: semi-axes `radius` * `stretch` and `radius` px, tilted within +-`tilt`, darkness varied."""
    cover = np.zeros((canvas.period, canvas.period), np.float32)
    count = len(points)
    size = radius * canvas.rng.uniform(0.8, 1.15, count)
    angle, tone = canvas.rng.uniform(-tilt, tilt, count), canvas.rng.uniform(0.75, 1, count)
    for k, (index, dy, dx) in enumerate(_around(canvas, points, size * stretch + 2)):
        along, across = dx * math.cos(angle[k]) + dy * math.sin(angle[k]), dy * math.cos(angle[k]) - dx * math.sin(angle[k])
        distance = np.sqrt((along / stretch) ** 2 + across**2)
        cover[index] = np.maximum(cover[index], tone[k] * np.clip((size[k] - distance) / 2 + 0.5, 0, 1))
    return cover


def _paint_nuclei(canvas: Canvas, colour: NDArray[np.float32], cover: Plane) -> NDArray[np.float32]:
    """(h, w, 3): haematoxylin over a colour, with clumps of chromatin."""
    clumps = np.clip(0.9 + 0.13 * _noise(canvas, 0.5, 0.5), 0.5, 1)
    return _mix(colour, (74, 44, 128), cover * clumps)


def _background(canvas: Canvas) -> NDArray[np.float32]:
    glass = 243 + 0.7 * _noise(canvas, 4, 4)
    return np.repeat(glass[..., None], 3, axis=-1)


def _fibres(canvas: Canvas) -> NDArray[np.float32]:
    """(h, w, 3): wavy bundles of collagen with pale clefts, no nuclei."""
    bend = (14 * canvas.um * _noise(canvas, 30, 30)).astype(np.intp)
    y, x = np.ogrid[: canvas.period, : canvas.period]
    strand = _noise(canvas, 1.2, 22)[(y + bend) % canvas.period, x]
    bundle = _noise(canvas, 5, 40)[(y + bend) % canvas.period, x]
    colour = _mix(_rgb(236, 186, 206), (206, 122, 164), _ramp(strand + bundle, -1.6, 2.4))
    return _mix(colour, (243, 232, 238), _ramp(-bundle, 1.5, 2.1))


def _stroma(canvas: Canvas) -> NDArray[np.float32]:
    colour = _fibres(canvas)
    return _paint_nuclei(canvas, colour, _ellipses(canvas, _points(canvas, 34 * canvas.um, 0.45), 1.9 * canvas.um, 3.2, tilt=0.5))


def _epithelium(canvas: Canvas) -> NDArray[np.float32]:
    """Glands of about 110 µm: a pale lumen, a ring of tall cells with nuclei at its foot, stroma between."""
    centres = _points(canvas, 122 * canvas.um, 0.12)
    radial = np.full((canvas.period, canvas.period), 9, np.float32)  # 0 at the centre of the nearest gland, 1 at its outline
    nuclei = []
    radii = 54 * canvas.um * canvas.rng.uniform(0.85, 1.15, len(centres))
    for centre, radius, (index, dy, dx) in zip(centres, radii, _around(canvas, centres, radii * 1.4), strict=True):
        phase = canvas.rng.uniform(0, 2 * np.pi, 2)
        angle = np.arctan2(dy, dx)
        outline = radius * (1 + 0.14 * np.cos(2 * angle + phase[0]) + 0.07 * np.cos(3 * angle + phase[1]))
        radial[index] = np.minimum(radial[index], np.sqrt(dy**2 + dx**2) / outline)
        for ring in (0.86, 0.66):
            steps = max(6, round(2 * np.pi * radius * ring / (9 * canvas.um)))
            turn = (np.arange(steps) + canvas.rng.uniform(-0.25, 0.25, steps)) * 2 * np.pi / steps
            reach = (
                radius
                * (1 + 0.14 * np.cos(2 * turn + phase[0]) + 0.07 * np.cos(3 * turn + phase[1]))
                * (ring + canvas.rng.uniform(-0.05, 0.05, steps))
            )
            nuclei.append(centre + np.stack([np.sin(turn), np.cos(turn)], -1) * reach[:, None])
    cells = _mix(_rgb(186, 128, 186), (206, 150, 198), _ramp(_noise(canvas, 2, 2), -2, 2))
    lumen = _mix(cells, (240, 232, 240), _ramp(-radial, -0.42, -0.36))
    colour = lumen + _ramp(radial, 0.99, 1.04)[..., None] * (_fibres(canvas) - lumen)
    return _paint_nuclei(canvas, colour, _ellipses(canvas, np.concatenate(nuclei), 3.5 * canvas.um, 1.25))


def _lymphoid(canvas: Canvas) -> NDArray[np.float32]:
    colour = _mix(_rgb(196, 160, 204), (178, 134, 190), _ramp(_noise(canvas, 3, 3), -2, 2))
    return _paint_nuclei(canvas, colour, _ellipses(canvas, _points(canvas, 9.2 * canvas.um, 0.22), 3.9 * canvas.um, 1.1))


def _fat(canvas: Canvas) -> NDArray[np.float32]:
    """Round vacuoles of about 55 µm in thin pink walls: the two nearest points' distances decide."""
    points = _points(canvas, 62 * canvas.um, 0.2)
    first, second = (np.full((canvas.period, canvas.period), 1e4, np.float32) for _ in range(2))
    for index, dy, dx in _around(canvas, points, np.full(len(points), 90 * canvas.um)):
        distance = np.sqrt(dy**2 + dx**2)
        second[index] = np.minimum(second[index], np.maximum(first[index], distance))
        first[index] = np.minimum(first[index], distance)
    inside = np.minimum(second - first, 1.6 * (37 * canvas.um - first))  # px to the wall, less at the corners of a cell
    colour = _mix(_rgb(218, 142, 178), (244, 238, 242), _ramp(inside, 3.5 * canvas.um, 6 * canvas.um))
    spots = points[canvas.rng.random(len(points)) < 0.6] + canvas.rng.normal(0, 1, (1, 2)) + (0, 30 * canvas.um)
    return _paint_nuclei(canvas, colour, _ellipses(canvas, spots, 2 * canvas.um, 2.2) * (inside < 5 * canvas.um))


def _blood(canvas: Canvas) -> NDArray[np.float32]:
    """Red cells of 7 µm, packed, with a few leukocytes."""
    cells = _ellipses(canvas, _points(canvas, 7.4 * canvas.um, 0.25), 3.4 * canvas.um, 1.05)
    colour = _mix(_rgb(236, 170, 170), (198, 48, 66), cells)
    white = _points(canvas, 60 * canvas.um, 0.45)
    return _paint_nuclei(canvas, colour, _ellipses(canvas, white, 4 * canvas.um, 1.1))


def shrink_texture(texture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(max(h / factor, 256), same, 3) uint8: the block mean of a periodic texture, repeated to at least one file tile."""
    side = len(texture) // factor
    total = np.zeros((side, side, 3), np.uint32)
    for y, x in product(range(factor), repeat=2):
        total += texture[y::factor, x::factor]
    small = ((total + factor**2 // 2) // factor**2).astype(np.uint8)
    copies = max(1, 256 // side)
    return np.tile(small, (copies, copies, 1))
