"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLIDES = Path(os.environ.get("TILESTREAM_TEST_DATA") or ROOT.parent / "shared" / "data") / "slides"


@pytest.fixture(scope="session")
def slides() -> Path:
    """Folder of real slides; tests that need it are skipped where it is absent."""
    if not SLIDES.is_dir():
        pytest.skip(f"no real slides at {SLIDES}: set TILESTREAM_TEST_DATA to the folder that holds slides/")
    return SLIDES
