"""How the command line shows its own help, and words on a terminal."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from tilestream.errors import ConfigError


def plain_params(params: Any) -> Any:
    """Parameters whose help shows a switch as a switch, and what is to be given by a name in capitals."""
    for param in params:
        kind = "" if getattr(param, "is_flag", False) or param.param_type_name == "argument" else param.metavar or param.name.upper()
        if getattr(param, "is_flag", False) and getattr(param, "metavar", "") is None:
            param.metavar = ""
        param.display_type_rich = lambda ctx, kind=kind: kind  # noqa: ARG005  # as typer calls it
    return params


class PlainCommand(TyperCommand):
    """A command whose help names what is to be given, and what must be given without braces."""

    def get_params(self, ctx: Any) -> Any:
        """Its parameters."""
        return plain_params(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of its usage line."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class PlainGroup(TyperGroup):
    """All commands, with such help."""

    def get_params(self, ctx: Any) -> Any:
        """Options before a command."""
        return plain_params(super().get_params(ctx))


def write_all_letters() -> None:
    """Have stdout and stderr write a letter that their encoding lacks by its number: no message is lost to a locale without µ, or to a file's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def name_refused(error: UnicodeEncodeError) -> ConfigError:
    """The refusal of a file's name that cannot be written, with what to do."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return ConfigError(f"{error.object!a}: a name holds bytes that are not UTF-8. Rename it.")
    lacks = f"a name has letters that {encoding}, the encoding of file names here, lacks"
    return ConfigError(f"{error.object!a}: {lacks}. Set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8.")


def fitted(words: str) -> str:
    """Words for stderr: on a terminal in lines that end between words."""
    if not sys.stderr.isatty():
        return words
    width = shutil.get_terminal_size().columns
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""] for line in words.splitlines())
    return "\n".join(row for rows in lines for row in rows)
