"""What the command `verify` does: every stored object against the checksum that was taken when it was written."""

from __future__ import annotations

from collections.abc import Callable

from tilestream.errors import EXIT_DONE, EXIT_PARTIAL, InputError
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
    for name, store in stores.items():
        found = store.damage()
        damaged += bool(found)
        say(f"{name}: {'ok' if not found else f'{len(found)} problems'}")
        for line in found:
            say(f"  {line}")
        if repair and found and store.completion is not None:
            say(f"  {store.repair()}")
    if damaged:
        way = (
            "Run their command again."
            if repair
            else "Unfinished ones: run their command again. Damaged ones: verify --repair, then run it again."
        )
        say(f"{damaged} of {len(stores)} slides are damaged or unfinished. {way}")
    return EXIT_PARTIAL if damaged else EXIT_DONE


def find_stores(address: str) -> dict[str, SlideStore]:
    """Stores by name: the one at `address`, or all that lie in that output."""
    folder = Folder(address)
    if folder.exists("zarr.json"):
        return {address.rstrip("/").rsplit("/", 1)[-1]: SlideStore(folder)}
    if folder.local is not None:
        names = sorted(path.name for path in folder.local.glob("*.zarr") if path.is_dir()) if folder.local.is_dir() else []
    else:
        names = sorted({key.split("/", 1)[0] for key in folder.names() if ".zarr/" in key})
    if not names:
        raise InputError(f"{address}: no output of tilestream here (no *.zarr folder). Give the `output` of a config.")
    return {name: SlideStore(folder / name) for name in names}
