"""Fixtures that every test may use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tilestream.errors import InputError
from tilestream.testing.slides import FOLDER, fetch_slide

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
if FOLDER not in os.environ and SHARED.is_dir():
    os.environ[FOLDER] = str(SHARED)


@dataclass(frozen=True)
class Slides:
    """Real slides by name: `slides / "a.svs"`. One that cannot be had skips the test that asks for it."""

    def __truediv__(self, name: str) -> Path:
        try:
            return fetch_slide(name)
        except InputError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def slides() -> Slides:
    """The real slides."""
    return Slides()
