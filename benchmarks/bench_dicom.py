"""Claim: DICOM frames are read at the speed of our TIFF path, at least five times as fast as OpenSlide with PIL.

    python -m benchmarks.bench_dicom [--pixels 4096] [--frames 256 512] [--tiles 224] [--threads 1] [--rounds 5] [--clock wall] [--json]

The same JPEG frames (4:2:0, quality 85) as a DICOM file and as a TIFF file; readers in turn, round by round, medians, warm cache. MPix/s count output
pixels; "times" is the median of the ratios within each round to OpenSlide with PIL on the DICOM file. "floor" decodes each frame once.
`--clock cpu` counts the processor's seconds, which other work on the machine does not lengthen: with one thread.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openslide
import pydicom
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from benchmarks.pictures import QUALITY, Case, Picture, make_tissue, write_picture
from benchmarks.readers import BATCH, for_each, read_shards, shares, unaligned
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

PIL = "openslide+pil"
Read = Callable[[], None]


def encode_frames(image: NDArray[np.uint8], side: int) -> list[bytes]:
    """JPEG frames, row-major; the image is a whole number of them."""
    frames = []
    for y in range(0, len(image), side):
        for x in range(0, image.shape[1], side):
            buffer = io.BytesIO()
            Image.fromarray(image[y : y + side, x : x + side]).save(buffer, "JPEG", quality=QUALITY, subsampling=2)
            frames.append(buffer.getvalue())
    return frames


def write_dicom(path: Path, image: NDArray[np.uint8], frames: list[bytes], side: int) -> None:
    """One level, TILED_FULL, with a basic offset table."""
    data, shared, measures = Dataset(), Dataset(), Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    data.ImageType, data.Modality = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SM"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.NumberOfFrames, data.Rows, data.Columns = len(frames), side, side
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = image.shape[:2]
    data.DimensionOrganizationType = "TILED_FULL"
    measures.PixelSpacing = [0.00025, 0.00025]
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def read_with_pil(path: Path, case: Case, pool: ThreadPoolExecutor, threads: int) -> Read:
    """Tile by tile, as most pipelines do."""
    slide = openslide.OpenSlide(path)
    places = list(zip(*(each.tolist() for each in case.places), strict=True))

    def run(part: list[tuple[int, int]]) -> None:
        for y, x in part:
            np.asarray(slide.read_region((x, y), 0, (case.tile, case.tile)).convert("RGB"))

    return lambda: for_each(run, shares(places, threads), pool, threads)


def read_frames(frames: list[bytes], side: int, pool: ThreadPoolExecutor, threads: int) -> Read:
    """Each frame decoded once."""

    def run(part: list[bytes]) -> None:
        buffer = unaligned(side)
        for data in part:
            simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=buffer)

    return lambda: for_each(run, shares(frames, threads), pool, threads)


def measure(
    image: NDArray[np.uint8], side: int, tile: int, threads: int, rounds: int, folder: Path, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """A row for each reader, after one reading that does not count."""
    frames = encode_frames(image, side)
    dicom, tiff = folder / f"{side}.dcm", write_picture(folder, image, "jpeg", side).path
    write_dicom(dicom, image, frames, side)
    case = Case(Picture(dicom, "jpeg", side, len(image)), tile)
    spec = ReadSpec(0, 1.0, tile, 1.0)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        readers: dict[str, Read] = {"floor": read_frames(frames, side, pool, threads), PIL: read_with_pil(dicom, case, pool, threads)}
        for name, path, backend in (
            ("openslide raw", dicom, "openslide"),
            ("tilestream", dicom, "auto"),
            ("tilestream on TIFF", tiff, "auto"),
        ):
            source = stack.enter_context(open_source(str(path), SourceOptions(backend=backend)))
            reader = TileReader(source, spec, pool=pool, threads=threads, batch=BATCH)
            readers[name] = lambda reader=reader: read_shards(reader, *case.places)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name, read in readers.items():
                start = clock()
                read()
                if turn:
                    seconds[name].append(clock() - start)
    return [
        {
            "frame": side, "tile": tile, "threads": threads, "reader": name, "MPix/s": round(case.pixels / median(taken) / 1e6, 1),
            "times": round(median(slow / fast for slow, fast in zip(seconds[PIL], taken, strict=True)), 2),
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pixels",
        type=int,
        default=4096,
        help="side of the image, a whole number of frames; smaller ones lie in the cache of OpenSlide, 32 MiB, from one round to the next",
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tiles", type=int, nargs="+", default=[224])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    image, rows = make_tissue(chosen.pixels), []
    with tempfile.TemporaryDirectory() as name:
        for side in chosen.frames:
            for tile in chosen.tiles:
                for threads in chosen.threads:
                    rows += measure(image, side, tile, threads, chosen.rounds, Path(name), clock)
    if chosen.json:
        print(json.dumps({"cores": os.cpu_count(), "rows": rows}))
        return rows
    for row in rows:
        print(
            f"{row['frame']} px frames, {row['tile']} px tiles, {row['threads']} threads: {row['reader']:<20} {row['MPix/s']:7.1f} MPix/s {row['times']:6.2f} x"
        )
    return rows


if __name__ == "__main__":
    main()
