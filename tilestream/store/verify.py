"""What the command `verify` does: every stored object against the checksum that was taken when it was written."""

from __future__ import annotations

from collections.abc import Callable

from tilestream.errors import EXIT_DONE, EXIT_PARTIAL
from tilestream.store.cohort import find_stores
from tilestream.store.folder import Folder
from tilestream.store.slide_store import SlideStore


def verify_output(address: str, say: Callable[[str], None], *, repair: bool = False) -> int:
    """Check an output folder or one store in it; returns the exit code, 0 or 4.

    With `repair`, what is damaged is forgotten, so that the next run redoes it and nothing else.

    Raises
    ------
    InputError
        There is no store of ours.
    """
    stores = find_stores(address)
    damaged = 0
    for name, folder in stores.items():
        store = SlideStore(Folder(folder.address))
        found = store.damage()
        damaged += bool(found)
        say(f"{name}: {'ok' if not found else f'{len(found)} problems'}")
        for line in found:
            say(f"  {line}")
        if repair and found:
            say(f"  {store.repair()}")
    if damaged:
        way = (
            "Run their command again."
            if repair
            else "Unfinished ones: run their command again. Damaged ones: verify --repair, then run it again."
        )
        say(f"{damaged} of {len(stores)} slides are damaged or unfinished. {way}")
    return EXIT_PARTIAL if damaged else EXIT_DONE
