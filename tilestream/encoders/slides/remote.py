"""Slide encoders that only their authors' own code can build: it is run where the config says that it may, and given our coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilestream.config.vectors.pool import OnePool
from tilestream.encoders.imported import import_optional
from tilestream.encoders.slides.presets import SlidePreset
from tilestream.errors import ConfigError, InputError, user_code
from tilestream.models.patch_embed import freeze
from tilestream.models.slides.base import Encoded, SlideEncoder, TileBlock
from tilestream.models.slides.specs import RemoteSpec


class RemoteEncoder(SlideEncoder):
    """A module of somebody else's repository behind the interface of a slide encoder.

    All vectors are in memory at once, as such code wants them. Coordinates are x, y of tiles in level-0 px, int64: whole multiples of the side that
    is given with them, so that no rounding puts two tiles into one of its cells.

    Parameters
    ----------
    preset : SlidePreset
        How it is called.
    module : nn.Module
        What the repository's code built.
    """

    def __init__(self, preset: SlidePreset, module: torch.nn.Module) -> None:
        super().__init__()
        assert isinstance(preset.spec, RemoteSpec)
        self.preset, self.spec, self.module = preset, preset.spec, module
        self.inputs, self.dim = preset.inputs, preset.dim
        freeze(self)

    def encode(self, blocks: Iterable[TileBlock], tiles: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The vector that the authors' code makes of a slide."""
        kept = list(blocks)
        check()
        vectors = torch.cat([block.vectors for block in kept])[None]
        cells = torch.cat([torch.stack([block.col, block.row], dim=1) for block in kept])
        coords = (cells * self.preset.tile)[None].to(vectors.device)
        with user_code(f"pool {self.preset.name}", f"{tiles} tiles", passing=(torch.OutOfMemoryError,)):
            found = self._call(vectors, coords).float().reshape(-1)
        if found.shape != (self.dim,):
            raise ConfigError(
                f"pool.weights: the code of {self.preset.name} gave {tuple(found.shape)} numbers, not {self.dim}. Fetch its repository anew."
            )
        return Encoded(found, None)

    def _call(self, vectors: Tensor, coords: Tensor) -> Tensor:
        module: Any = self.module
        if self.spec.call == "patch_features":
            found: Tensor = module.encode_slide_from_patch_features(vectors, coords, self.preset.tile)
        elif self.spec.call == "representations":
            found = module.slide_representations(vectors)["image_embedding"]
        else:
            found = module(vectors, vectors.shape[1], coords).wsi_embedding
        return found


def build_remote(preset: SlidePreset, pool: OnePool) -> RemoteEncoder:
    """Build a slide encoder by the code in its repository's folder.

    Raises
    ------
    ConfigError
        The config does not say that this code may run, or it cannot build its module.
    InputError
        There is no such folder.
    """
    if not pool.trust_remote_code:
        raise ConfigError(
            f"pool.trust_remote_code: false, but {preset.name} is built by code of its own repository ({preset.page}), which can do whatever you can. "
            "Read it, then set it to true."
        )
    folder = Path(str(pool.weights))
    if pool.weights is None or not (folder / "config.json").is_file():
        raise InputError(
            f"pool.weights: {pool.weights}, but {preset.name} needs the folder of its whole repository, code and weights. Accept its terms at {preset.page}, "
            f"run `hf download {preset.repository} --local-dir {preset.name}`, and set pool.weights to that folder."
        )
    transformers = import_optional("transformers", "hf")
    with user_code(f"pool {preset.name}", f"building it from {folder}"):
        module = transformers.AutoModel.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True, dtype=torch.float32)
    return RemoteEncoder(preset, module)
