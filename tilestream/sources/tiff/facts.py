"""What `inspect` tells of a TIFF page beside what is read of it."""

from __future__ import annotations

from typing import Any

from tilestream.sources.tiff.stated_mpp import is_aperio


def page_facts(page: Any, series: Any) -> dict[str, str]:
    """Free facts for `inspect`."""
    facts = {
        "tiff.series": str(series.kind),
        "tiff.axes": str(series.axes),
        "tiff.photometric": getattr(page.photometric, "name", str(page.photometric)).lower(),
    }
    for name in ("software", "datetime", "description"):
        text = str(getattr(page, name) or "").strip()
        if text:
            facts[f"tiff.{name}"] = text[:1000]
    if is_aperio(page.description):
        facts.update(_aperio_facts(page.description))
    return facts


def _aperio_facts(description: str) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in description.split("|")[1:] if "=" in part)
    return {f"aperio.{key.strip()}": value.strip() for key, value in pairs}
