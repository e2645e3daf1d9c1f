"""Tiles are put together alike, however many are at once."""

import subprocess
import sys

import torch

from tilestream.geometry import Size
from tilestream.sources.base import SegmentGrid
from tilestream.tiles import device_gather
from tilestream.tiles.device_gather import gather_tiles


def test_index_arithmetic_in_parts_gives_the_same_tiles(monkeypatch):
    random = torch.Generator().manual_seed(0)
    arena = torch.randint(0, 255, (9, 16, 16, 3), dtype=torch.uint8, generator=random)
    slots, starts = torch.randint(0, 9, (7, 3, 3), generator=random), torch.randint(-8, 60, (2, 7), generator=random)
    given = arena, slots, starts, 12, SegmentGrid(16, 16, 4, 4), Size(60, 64)
    whole = gather_tiles(*given)
    monkeypatch.setattr(device_gather, "GATHER_PIXELS", 2 * 12**2)
    assert torch.equal(gather_tiles(*given), whole)
    assert gather_tiles(arena, slots[:0], starts[:, :0], *given[3:]).shape == (0, 12, 12, 3)


ENDING = """
import threading, time, torch
from tilestream.tiles.device_gather import _Kernels
def compile_slowly(kernels, device, block):
    time.sleep(0.5)
    print("compiled", flush=True)
_Kernels._compile = compile_slowly
asked = threading.Thread(target=_Kernels().get, args=[torch.device("cpu"), 8], daemon=True)  # as those are that read ahead
asked.start()
asked.join()
"""


def test_a_process_that_ends_waits_for_the_compiler():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=True)
    assert done.stdout == "compiled\n"
