"""Worker processes import the script that started them: one that starts a run as it is imported would start runs without end."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path
from types import FrameType

from tilestream.errors import ConfigError

_GUARDS = frozenset({"__name__", "parent_process", "current_process"})
"""Names by which a script tells whether it is run or imported."""


def check_main_guard() -> None:
    """Refuse a run that a script starts as soon as it is imported, where worker processes would import it.

    Raises
    ------
    ConfigError
        With what to write.
    """
    line = _unguarded_line()
    if line is not None or getattr(multiprocessing.current_process(), "_inheriting", False):
        where = f"{_script()}, line {line}" if line is not None else "the script"
        raise ConfigError(
            f"compute.scheduler: local starts worker processes, and each of them imports {where}, which would start this run once more. "
            'Put what the script does under `if __name__ == "__main__":`, or set compute.scheduler to inline.'
        )


def _script() -> str | None:
    """The file that worker processes import as the main module; None where there is none, as in a notebook or with `python -m package`."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None and name.rpartition(".")[2] == "__main__":
        return None
    return getattr(main, "__file__", None)


def _unguarded_line() -> int | None:
    """The line of the script that is being executed now, where it stands under no guard."""
    script = _script()
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # what the traceback of an error here would show
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_filename == script:
            return None if _is_guarded(Path(script), frame.f_lineno) else frame.f_lineno
        frame = frame.f_back
    return None


def _is_guarded(script: Path, line: int) -> bool:
    """Whether a line of a script stands under an `if` that asks who runs it; where the script cannot be read, it is believed to."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    around = (node for node in ast.walk(tree) if isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or node.lineno))
    return any(_GUARDS & _names(node.test) for node in around)


def _names(test: ast.expr) -> set[str]:
    """Names and attributes in an expression."""
    return {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(test) if isinstance(node, ast.Name | ast.Attribute)}
