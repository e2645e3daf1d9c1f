"""The house: a line of it imports only from lines above, and within a line only from the left."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tilestream"

HOUSE = "errors geometry grid config store sources tiles models encoders stages runner fit interop viewer cli __main__".split()
LONGEST_FILE = 350


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(name: str) -> int:
    if name in ORDER:
        return ORDER.index(name)
    folder = name.rpartition(".")[0]
    return ORDER.index(f"{folder}.*")


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, type checking included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tilestream":
            inner = node.module.partition(".")[2]
            found |= {f"{inner}.{a.name}".strip(".") for a in node.names} if not inner or inner == "models" else {inner}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("tilestream.")}
    return found - {"", "__version__"}


@pytest.mark.parametrize("path", modules(), ids=room)
def test_a_room_imports_only_from_rooms_before_it(path):
    name = room(path)
    if name == "":
        assert imported(path) == {"opened", "run"}
        return
    for other in imported(path):
        same_star = place(other) == place(name) and ORDER[place(name)].endswith("*")
        assert same_star or place(other) < place(name), f"{name} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=room)
def test_a_file_has_one_responsibility(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_every_room_exists():
    rooms = {room(p) for p in modules()}
    assert {name for name in ORDER if not name.endswith("*")} <= rooms | {""}


def test_importing_the_package_loads_no_heavy_library():
    import subprocess
    import sys

    code = "import sys, tilestream; print([m for m in ('torch', 'zarr', 'dask', 'anndata', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
