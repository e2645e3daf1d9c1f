"""Rows of facts on a terminal: as a table where it is wide enough, else one below the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

LEAST_FOLDED = 16
"""Letters that a column which may be folded keeps."""

GAP = 2
"""Letters between columns."""


def print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, folded: Collection[str] = ()) -> None:
    """A table of which only columns in `folded` are narrowed; where the others leave no room for it, each row is told in lines, nothing cut."""
    widths = [max(map(cell_len, [name, *(row[k] for row in rows)])) for k, name in enumerate(columns)]
    needed = [min(width, LEAST_FOLDED) if name in folded else width for name, width in zip(columns, widths, strict=True)]
    if sum(needed) + GAP * (len(columns) - 1) <= console.width:
        table = Table(box=None, pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold", no_wrap=name not in folded)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    for row in rows:
        for k, (name, value) in enumerate(zip(columns, row, strict=True)):
            print_words(console, f"{'  ' if k else ''}{name}: {value}")


def print_words(console: Console, words: str, *, style: str | None = None) -> None:
    """Words as they are, broken between them on a terminal alone: lines of a file or a pipe stay whole."""
    console.print(words, style=style, highlight=False, markup=False, soft_wrap=not console.is_terminal)
