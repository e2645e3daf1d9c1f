"""Rows of facts in any width: every value stands whole somewhere, and nothing is wider than the terminal."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tilestream.sources.facts.columns import print_rows, print_words

COLUMNS = ("slide", "size (h x w)", "µm/px", "memory")
CELLS = st.tuples(
    st.text("abcäxyz_", min_size=1, max_size=30), st.sampled_from(["2967 x 2220", "100000 x 200000"]), st.sampled_from(["-", "0.2527"]),
    st.sampled_from(["824 MiB", "1.25 GiB"]),
)  # fmt: skip


def printed(width, print_it, *, terminal=True):
    file = io.StringIO()
    print_it(Console(width=width, file=file, force_terminal=terminal, no_color=True, color_system=None))
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(CELLS, min_size=1, max_size=4), width=st.integers(34, 200))
def test_no_value_is_cut_whatever_the_width(rows, width):
    text = printed(width, lambda console: print_rows(console, COLUMNS, rows, folded=("slide",)))
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    letters = sorted("".join(text.split()))
    for row in rows:
        assert all(value in text for value in row[1:])
    names = len(rows) if "slide:" in text else 1
    colons = ":" * (len(COLUMNS) * names if "slide:" in text else 0)
    assert letters == sorted("".join("".join(part).replace(" ", "") for part in [COLUMNS * names, *rows]) + colons)


@pytest.mark.parametrize("width", [40, 52, 53, 80])
def test_a_row_is_told_in_lines_exactly_where_a_table_has_no_room(width):
    row = ("a" * 16, "2967 x 2220", "0.499", "824 MiB")
    text = printed(width, lambda console: print_rows(console, COLUMNS, [row], folded=("slide",)))
    needed = 16 + len("size (h x w)") + 5 + 7 + 2 * 3
    assert text.startswith("slide: ") == (width < needed)


@pytest.mark.parametrize("terminal", [True, False])
def test_words_are_broken_on_a_terminal_alone(terminal):
    words = " ".join(["word"] * 30)
    lines = printed(40, lambda console: print_words(console, words), terminal=terminal).splitlines()
    assert (" ".join(line.strip() for line in lines), len(lines) == 1) == (words, not terminal)
