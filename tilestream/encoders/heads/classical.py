"""A detector of nuclei that has learned nothing: colour deconvolution, a threshold, and a watershed from the middles of what is left.

It finds dark, roundish nuclei in H&E at about 0.5 µm/px, and is there so that the line can be tried with what is in the box. It is no match for a
trained model: pale nuclei are missed, clumps are cut by shape alone, and pigment or folds count as nuclei.
Source of the stain vectors: Ruifrok and Johnston 2001, "Quantification of histochemical staining by color deconvolution".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
"""Optical density of haematoxylin, eosin and a third direction, for red, green and blue."""


class ClassicalNuclei(nn.Module):
    """Nuclei as an instance image, from the amount of haematoxylin in each pixel.

    All steps look at a few px round about, so that a nucleus is the same in every patch that shows it and its neighbours whole.

    Parameters
    ----------
    threshold : float
        Optical density of haematoxylin from which on a pixel is of a nucleus.
    smallest, largest : int
        Px of a nucleus; what is smaller is left out, and what is larger too.
    spread : float
        Standard deviation, px, of the smoothing.
    """

    unmix: Tensor
    bell: Tensor
    classes = ("nucleus",)
    mpp = 0.5
    context = 16

    def __init__(self, threshold: float = 0.3, smallest: int = 25, largest: int = 900, spread: float = 1.0) -> None:
        super().__init__()
        self.threshold, self.smallest, self.largest, self.spread = threshold, smallest, largest, spread
        self.register_buffer("unmix", torch.linalg.inv(torch.tensor(STAINS))[:, :1].T.contiguous())
        self.register_buffer("settings", torch.tensor([threshold, smallest, largest, spread], dtype=torch.float64))
        reach = int(3 * spread + 0.5)
        bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / spread) ** 2)
        self.reach = reach
        self.register_buffer("bell", (bell / bell.sum())[None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) uint8 -> (n, S, S) optical density of haematoxylin, smoothed."""
        density = -torch.log10((pixels.float() + 1) / 256)
        amount = nn.functional.conv2d(density, self.unmix[:, :, None, None])
        padded = nn.functional.pad(amount, (self.reach,) * 4, mode="replicate")
        found: Tensor = nn.functional.conv2d(nn.functional.conv2d(padded, self.bell[..., None]), self.bell[:, :, None])
        return found[:, 0]

    def find_objects(self, density: NDArray[np.float32]) -> tuple[Any, ...]:
        """Boxes, scores, classes and the instance image of one patch; the score is the mean density, at most 1."""
        from scipy import ndimage
        from skimage.measure import regionprops
        from skimage.segmentation import watershed

        inside = ndimage.binary_fill_holes(ndimage.binary_opening(density >= self.threshold, np.ones((3, 3))))
        depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), self.spread)
        peaks = (depth == ndimage.maximum_filter(depth, 7)) & (depth > 1.5)
        seeds, _ = ndimage.label(ndimage.binary_dilation(peaks, np.ones((3, 3))) & inside, np.ones((3, 3)))
        labels = watershed(-depth, seeds, mask=inside)
        kept = [piece for piece in regionprops(labels, density) if self.smallest <= piece.area <= self.largest]
        numbers = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
        numbers[[piece.label for piece in kept]] = np.arange(1, len(kept) + 1)
        boxes = np.array([piece.bbox for piece in kept], np.float64).reshape(-1, 4)
        scores = np.array([min(1.0, float(piece.intensity_mean)) for piece in kept], np.float32)
        return boxes, scores, np.zeros(len(kept), np.int64), numbers[labels]


def nuclei() -> ClassicalNuclei:
    """The detector as a head: `model: tilestream.encoders.heads.classical:nuclei`."""
    return ClassicalNuclei()
