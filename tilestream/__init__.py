"""Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilestream.config.schema import Config
    from tilestream.encoders.registry import load_encoder
    from tilestream.fitting.fit import fit
    from tilestream.fitting.unlabelled.neighbour_index import index_tiles
    from tilestream.fitting.unlabelled.search import find_nearest
    from tilestream.interop.patients import patient_vectors
    from tilestream.models.context import ContextTransformer
    from tilestream.runner.driver import run
    from tilestream.sources import open_image
    from tilestream.stages.embed_tiles import embed
    from tilestream.store.cohort import open_output
    from tilestream.tiles.grid import find_tiles

    open = open_output  # noqa: A001

_PLACES = {
    "Config": "tilestream.config.schema",
    "ContextTransformer": "tilestream.models.context",
    "embed": "tilestream.stages.embed_tiles",
    "find_nearest": "tilestream.fitting.unlabelled.search",
    "find_tiles": "tilestream.tiles.grid",
    "fit": "tilestream.fitting.fit",
    "index_tiles": "tilestream.fitting.unlabelled.neighbour_index",
    "load_encoder": "tilestream.encoders.registry",
    "open_image": "tilestream.sources",
    "patient_vectors": "tilestream.interop.patients",
    "run": "tilestream.runner.driver",
}
"""Where the public names live; each is imported when it is asked for, as most bring torch."""

__all__ = [
    "Config",
    "ContextTransformer",
    "__version__",
    "embed",
    "find_nearest",
    "find_tiles",
    "fit",
    "index_tiles",
    "load_encoder",
    "open_image",
    "patient_vectors",
    "run",
]  # open shadows a builtin


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    from importlib import import_module

    if name == "open":
        return import_module("tilestream.store.cohort").open_output
    if name not in _PLACES:
        raise AttributeError(f"module 'tilestream' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "open"})
