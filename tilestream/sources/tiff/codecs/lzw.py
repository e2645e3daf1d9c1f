"""Whether an LZW stream is safe to give to a decoder.

A clear code empties the table, so the code after it must be a single byte (TIFF 6.0, section 13). imagecodecs' decoder does not hold
that code against its table: for any other it reads an entry that may never have been written, and the process may die of it.
"""

from __future__ import annotations

import numpy as np

from tilestream.errors import ReadError

CLEAR, END = 256, 257

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order, for files whose FillOrder is 2."""

_AFTER_CLEAR = 5200
"""Codes between two clear codes that are looked at; the decoder gives up before so many."""

_WIDTHS = np.repeat(np.array([9, 10, 11, 12]), [254, 512, 1024, _AFTER_CLEAR - 254 - 512 - 1024])
"""Bits of each code after a clear code: the table grows by one entry a code from its second on, and the switch is one entry early."""
_ENDS = np.cumsum(_WIDTHS)
_MASKS = ((1 << _WIDTHS) - 1).astype(np.uint32)

_BYTES = [(phase + _ENDS - _WIDTHS) >> 3 for phase in range(8)]
"""Where each code begins, in bytes, after a clear code that ends `phase` bits into the first of them."""
_SHIFTS = [(24 - ((phase + _ENDS - _WIDTHS) & 7) - _WIDTHS).astype(np.uint32) for phase in range(8)]
"""How far a code lies above the end of the three bytes that hold it."""


def check_lzw(data: bytes) -> None:
    """Refuse a stream in which a clear code is followed by a code that is not in the table.

    Raises
    ------
    ReadError
    """
    raw = np.frombuffer(data + bytes(3), np.uint8).astype(np.uint32)
    triples = (raw[:-2] << 16) | (raw[1:-1] << 8) | raw[2:]
    start = 9  # after the clear code that a stream begins with; without one the decoder refuses it
    while True:
        count = int(np.searchsorted(_ENDS, 8 * len(data) - start, side="right"))
        if count == 0:
            return
        byte, phase = divmod(start, 8)
        codes = (triples[byte + _BYTES[phase][:count]] >> _SHIFTS[phase][:count]) & _MASKS[:count]
        if codes[0] > END:
            raise ReadError(f"decoder: LZW code {codes[0]} at bit {start} follows a clear code, where the table is empty")
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        if not len(stops) or codes[stops[0]] == END:
            return
        start += int(_ENDS[stops[0]])
