"""A small slide encoder in the place of a released one, and its weights in a file."""

from dataclasses import replace

import torch

from tilestream.encoders.slides.presets import SLIDE_PRESETS
from tilestream.models.patch_embed import seeded_init
from tilestream.models.slides.longnet import LongNet
from tilestream.models.slides.specs import Branches, LongNetSpec

SMALL = LongNetSpec(12, 16, 2, 4, 32, Branches((4, 12, 40), (1, 2, 4)))
"""For vectors of corners: segments far shorter than a slide."""


def small_gigapath(monkeypatch, folder, **changed):
    """Make gigapath small for this test, on tiles of 64 px at 0.5 µm/px of the encoder `corners`; the path of its weights, which are random."""
    preset = replace(SLIDE_PRESETS["gigapath"], spec=SMALL, tile=64, tile_encoder="tests.support.encoders:corners")
    monkeypatch.setitem(SLIDE_PRESETS, "gigapath", replace(preset, **changed))
    module = LongNet(SMALL)
    seeded_init(module, 7, std=0.3)
    torch.save({"model": module.state_dict()}, folder / "slide_encoder.pth")
    return module, str(folder / "slide_encoder.pth")
