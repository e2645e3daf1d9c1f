"""Where the frames of a DICOM file lie: as they are counted, by a basic or extended offset table, or by one walk over the fragments (PS3.5 A.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilestream.errors import InputError, ReadError
from tilestream.sources.dicom.instance import HEAD, NATIVE, Instance
from tilestream.sources.dicom.kept import Kept
from tilestream.sources.storage.contract import ByteSource

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

FRAGMENTS_A_FRAME = 64
"""Fragments that a frame is believed to have, on average, beside the first few thousand."""

MOST_FETCHED = 64 * 1024**2
"""Bytes of an object without an offset table that are fetched to find its frames."""

STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
"""First bytes of JPEG and JPEG 2000 streams; a fragment that goes on with a frame has others."""


@dataclass(frozen=True)
class FramePlaces:
    """Where the frames of one file lie."""

    offsets: NDArray[np.int64]
    """(frames,) bytes from the file's beginning: of the first pixel, or of the first fragment's item tag."""
    counts: NDArray[np.int64]
    """(frames,) bytes, item tags included."""
    encapsulated: bool
    """Whether the bytes are fragments, each behind its item tag."""


_WALKED: Kept[FramePlaces] = Kept(64)


def find_frames(found: Instance, file: ByteSource) -> FramePlaces:
    """Where the frames of a file lie.

    Raises
    ------
    InputError
        Its pixel data are not what its header says, or are cut off before that can be known.
    """
    start, frames = found.pixels.at, found.frames
    if (found.pixels.length is not None) != (found.syntax in NATIVE):
        raise InputError(
            f"{found.name}: its pixel data are not laid out as its transfer syntax ({found.syntax}) has them. The file is damaged; export it again."
        )
    if found.pixels.length is not None:
        return FramePlaces(
            start + np.arange(frames, dtype=np.int64) * found.frame_bytes, np.full(frames, found.frame_bytes, np.int64), encapsulated=False
        )
    head = _head(file, start)
    if len(head) < HEAD or head[:4] != ITEM:
        raise InputError(f"{found.name}: no offset table begins its pixel data. The file is damaged; copy it again from its origin.")
    length = int.from_bytes(head[4:], "little")
    first = start + HEAD + length
    if found.pixels.extended is not None:
        offsets, lengths = found.pixels.extended
        return FramePlaces(first + offsets, HEAD + lengths + lengths % 2, encapsulated=True)
    table = file.read(start + HEAD, length) if length == 4 * frames and start + HEAD + length <= file.size else b""
    if len(table) == 4 * frames:
        offsets = np.frombuffer(table, "<u4").astype(np.int64)
        if offsets[0] == 0 and (np.diff(offsets) > 0).all():  # one of more than 4 GiB has begun anew
            end = _end_of_frame(found, file, first + int(offsets[-1]))
            return FramePlaces(first + offsets, np.diff(offsets, append=end - first), encapsulated=True)
    return _WALKED.get(file, lambda: _walk(found, file, first))


class _Held(ByteSource):
    """A small object, read at once."""

    def __init__(self, file: ByteSource) -> None:
        self.name, self.identity, self.size = file.name, file.identity, file.size
        self._data = file.read(0, file.size)

    def close(self) -> None:
        self._data = b""

    def read(self, start: int, count: int) -> bytes:
        return self._data[start : start + count]


def _walk(found: Instance, file: ByteSource, first: int) -> FramePlaces:
    """Fragments put together to frames: one is one, or each that begins as a stream does begins a frame."""
    if file.identity:
        if file.size > MOST_FETCHED:
            raise InputError(
                f"{found.name}: has no offset table, so that all of its {file.size / 2**20:.0f} MiB would be fetched to find its frames; "
                f"at most {MOST_FETCHED // 2**20} MiB are. Copy it ahead: set source.stage to a folder, or download its series."
            )
        file = _Held(file)
    end, fragments = _walk_fragments(found, file, first)
    if len(fragments) == found.frames:
        starts = fragments
    elif found.frames == 1:
        starts = fragments[:1]
    else:
        starts = [place for place in fragments if _head(file, place + HEAD).startswith(STARTS)]
    if len(starts) != found.frames or starts[0] != first:
        raise InputError(
            f"{found.name}: {len(fragments)} fragments, which cannot be told to be its {found.frames} frames without an offset table. "
            "The file is damaged; export it again with one."
        )
    offsets = np.asarray(starts, np.int64)
    return FramePlaces(offsets, np.diff(offsets, append=end), encapsulated=True)


def _walk_fragments(found: Instance, file: ByteSource, at: int) -> tuple[int, list[int]]:
    """Where the last fragment ends, and where the item tag of each stands."""
    fragments: list[int] = []
    most = FRAGMENTS_A_FRAME * (found.frames + FRAGMENTS_A_FRAME)
    while True:
        head = _head(file, at)
        if head[:4] == DELIMITER:
            return at, fragments
        if len(head) < HEAD or head[:4] != ITEM:
            way = "is cut off" if at + HEAD > file.size else "is damaged"
            raise InputError(
                f"{found.name}: has no offset table, and its fragments end after {len(fragments)} at byte {at}; it has {found.frames} frames. "
                f"The file {way}; copy it again from its origin."
            )
        if len(fragments) == most:
            raise InputError(
                f"{found.name}: more than {most} fragments for {found.frames} frames. The file is damaged; copy it again from its origin."
            )
        fragments.append(at)
        at += HEAD + int.from_bytes(head[4:], "little")


def _end_of_frame(found: Instance, file: ByteSource, at: int) -> int:
    """Where the last frame ends: at the end of the sequence, or of the file where that is cut off."""
    for _ in range(FRAGMENTS_A_FRAME * FRAGMENTS_A_FRAME):
        head = _head(file, at)
        if len(head) < HEAD or head[:4] != ITEM:
            return min(at, file.size)
        at += HEAD + int.from_bytes(head[4:], "little")
    raise InputError(f"{found.name}: its last frame has no end. The file is damaged; copy it again from its origin.")


def _head(file: ByteSource, at: int) -> bytes:
    """The tag and the length of an item; fewer bytes at the end of the file."""
    return file.read(at, max(0, min(HEAD, file.size - at)))


def join_fragments(span: bytes) -> bytes:
    """The bytes of a frame from its fragments with their item tags, which must fill the span. Raises ReadError."""
    parts, at = [], 0
    while at < len(span):
        tag, length = struct.unpack_from("<4sI", span, at) if at + HEAD <= len(span) else (b"", 0)
        if tag != ITEM:
            raise ReadError("no frame lies where the offset table says. The file is damaged; copy it again from its origin")
        at += HEAD + length
        if at > len(span):
            raise ReadError("a fragment reaches beyond its frame. The file is damaged or cut off; copy it again from its origin")
        parts.append(span[at - length : at])
    if not any(parts):
        raise ReadError("the frame is empty")
    return parts[0] if len(parts) == 1 else b"".join(parts)
