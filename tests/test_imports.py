"""The house: a room imports only from the rooms above it, there is no circle inside one, and no room is crowded."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tilestream"

ROOMS = [
    "errors",
    "geometry",
    "buffers",
    "config",
    "store",
    "sources",
    "tiles",
    "models",
    "encoders",
    "stages",
    "runner",
    "fitting",
    "interop",
    "viewer",
    "testing",
    "cli",
    "__main__",
]

LONGEST_FILE = 350
MOST_FILES = 16
MOST_FILES_AT_THE_TOP = 6
HEAVY = ("torch", "zarr", "dask", "anndata", "pydantic", "numpy")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, type checking included."""
    known = {name_of(p) for p in modules()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tilestream":
            inner = node.module.partition(".")[2]
            each = {f"{inner}.{alias.name}".strip(".") for alias in node.names}
            found |= {name if name in known else inner for name in each}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("tilestream.")}
    return found - {""}


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("path", [p for p in modules() if name_of(p)], ids=name_of)
def test_a_room_imports_only_from_rooms_above_it(path):
    mine = room(name_of(path))
    for other in imported(path):
        assert ROOMS.index(room(other)) <= ROOMS.index(mine), f"{name_of(path)} imports {other}"


def test_no_circle_inside_a_room():
    TopologicalSorter({name_of(p): imported(p) - {name_of(p)} for p in modules() if name_of(p)}).prepare()  # raises CycleError


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_file_has_one_responsibility(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_no_room_is_crowded():
    for folder in {path.parent for path in modules()}:
        most = MOST_FILES_AT_THE_TOP if folder == PACKAGE else MOST_FILES
        files = list(folder.glob("*.py"))
        assert len(files) <= most, f"{folder.name}: {len(files)} files"


def test_a_room_says_its_job_in_one_sentence():
    for path in PACKAGE.rglob("__init__.py"):
        words = ast.get_docstring(ast.parse(path.read_text()))
        assert words, path
        assert "\n\n" not in words, path


def test_every_folder_is_a_room_that_is_known():
    folders = {path.relative_to(PACKAGE).parts[0] for path in modules() if path.parent != PACKAGE}
    assert folders <= set(ROOMS)


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, tilestream; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
