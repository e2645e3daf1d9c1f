"""Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""

__version__ = "0.1.0"

from tilestream.runner.run import run
from tilestream.store.slide import open_slide_store as open  # noqa: A004  # tilestream.open is the documented name

__all__ = ["__version__", "open", "run"]
