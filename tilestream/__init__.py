"""Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from tilestream.store.slide import open_slide_store as open  # noqa: A004  # tilestream.open is the documented name

if TYPE_CHECKING:
    from tilestream.runner.driver import run

__all__ = ["__version__", "open", "run"]


def __getattr__(name: str) -> Any:
    """`run`, loaded when it is asked for: it brings torch and dask."""
    if name != "run":
        raise AttributeError(f"module 'tilestream' has no attribute {name!r}")
    from tilestream.runner.driver import run

    return run
