"""Files that appear whole or not at all, and replace only what was written here before."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tilestream.errors import ConfigError
from tilestream.store.folder import Folder
from tilestream.store.ownership import refuse_zarr
from tilestream.store.slide import Slide

RECORDS = ".tilestream/written"


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    tiles: int
    """Tiles in the file, or objects."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""
    what: str = "tiles"
    """What was counted."""

    @classmethod
    def without_failed(cls, slide: Slide) -> Written:
        """All tiles of a slide that have an embedding, and words for those that have none."""
        good = slide.read_good()
        tiles = int(good.sum())
        failed = len(good) - tiles
        words = (f"{failed} failed {'tile' if failed == 1 else 'tiles'} left out, without an embedding",) if failed else ()
        return cls(tiles, words)


class Records:
    """What was written from an output, with the digest of its bytes: kept in the output, so that only that is replaced."""

    def __init__(self, output: Folder) -> None:
        self.output = output

    def known(self, path: Path) -> list[str]:
        """Digests of what was written to a path."""
        try:
            record = json.loads(self.output.get(self._key(path)) or b"{}")
            return [str(known) for known in record.get("digests", [])]
        except (OSError, ValueError, AttributeError, TypeError):
            return []

    def keep(self, path: Path, digests: list[str]) -> None:
        """Write down what a path holds, or is about to hold."""
        with suppress(OSError, ConfigError):  # an output of others, which may be read only: --force is needed the next time
            self.output.put(self._key(path), json.dumps({"tilestream": "written", "path": str(path), "digests": digests}).encode())

    def _key(self, path: Path) -> str:
        """Of the path within the output, where it lies there: outputs may be moved."""
        place = path.absolute()
        home = None if self.output.local is None else self.output.local.absolute()
        inside = home is not None and place.is_relative_to(home)
        name = place.relative_to(home).as_posix() if home is not None and inside else place.as_posix()
        return f"{RECORDS}/{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"


@dataclass(frozen=True)
class Target:
    """A file or folder that is to be written."""

    path: Path
    force: bool = False
    """Whether a file is replaced, whoever wrote it."""
    records: Records | None = None
    """Where it is written down what was written."""
    option: str = "--out"
    """How a person names another."""

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A path to write to, in a folder of its own beside the target; renamed to it when the block ends well, removed when it does not.

        What is there is replaced where it is, byte for byte, what was written there before.

        Raises
        ------
        ConfigError
            Something else is there, or the target's folder is part of a Zarr or cannot be written to.
        """
        refuse_zarr(self.path.parent, self.option)
        before = self._refuse_foreign()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=".export-", dir=self.path.parent))
        except OSError as error:
            raise ConfigError(
                f"{self.option}: {self.path.parent} cannot be written to: {error.strerror or error}. Name another with {self.option}."
            ) from error
        try:
            made = beside / self.path.name
            yield made
            if self.records is not None:  # both, for as long as either may be there: cut short, what lies there is still known
                self.records.keep(self.path, [digest(made), *before])
            if self.path.is_dir() or self.path.is_symlink():
                self.path.rename(beside / "before")  # folders are not replaced, and a link is not followed
            made.replace(self.path)
        finally:
            shutil.rmtree(beside)

    def _refuse_foreign(self) -> list[str]:
        """The digest of what is there, none where nothing is; refuses what may not be replaced."""
        is_link = self.path.is_symlink()
        if not (is_link or self.path.exists()):
            return []
        known = [] if self.records is None or is_link else self.records.known(self.path)
        if known and (here := digest(self.path)) in known:
            return [here]
        if self.path.is_dir() and not is_link:
            raise ConfigError(f"{self.option}: {self.path} is there already. Delete it, or name another.")
        if not self.force:
            raise ConfigError(
                f"{self.option}: {self.path} is there already, and was not written by this command, or was changed since. "
                f"Name another with {self.option}, or replace it with --force."
            )
        return []


def digest(path: Path) -> str:
    """A digest over the bytes of a file, or over the names and bytes of all that lies in a folder."""
    total = hashlib.blake2b(digest_size=16)
    for part in [path] if path.is_file() else sorted(path.rglob("*")):
        kind = "link" if part.is_symlink() else "folder" if part.is_dir() else "file"
        total.update(f"{kind} {part.relative_to(path).as_posix()}\0".encode())
        if kind == "file":
            with part.open("rb") as file:
                total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()
