"""HTML, CSS and JavaScript of the pages, in files of their own."""

from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """The text of a file of this folder."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
