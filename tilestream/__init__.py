"""Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilestream.runner.driver import run
    from tilestream.store.cohort import open_output as open  # noqa: A004, F401  # left out of __all__, for `import *`; tilestream.open is the documented name

_PLACES = {"open": ("tilestream.store.cohort", "open_output"), "run": ("tilestream.runner.driver", "run")}
"""Module and name of what is loaded when it is asked for."""

__all__ = ["__version__", "run"]


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is asked for: they bring torch, dask and zarr."""
    if name not in _PLACES:
        raise AttributeError(f"module 'tilestream' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
