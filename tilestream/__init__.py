"""Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""

__version__ = "0.1.0"
