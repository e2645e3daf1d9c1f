"""Whole-slide images in DICOM, written by pydicom."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

Image = NDArray[np.uint8]


def encode_jpeg(tile: Image, **options: Any) -> bytes:
    """JPEG by Pillow: JFIF in YCbCr, unless `keep_rgb`."""
    buffer = io.BytesIO()
    Pillow.fromarray(tile).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def _encode_rle(tile: Image) -> bytes:
    samples = tile.shape[2] if tile.ndim == 3 else 1
    bits = 8 * tile.dtype.itemsize
    facts = {"rows": tile.shape[0], "columns": tile.shape[1], "samples_per_pixel": samples, "bits_allocated": bits, "bits_stored": bits}
    colours = {"photometric_interpretation": "RGB" if samples == 3 else "MONOCHROME2", "pixel_representation": 0, "planar_configuration": 0}
    return bytes(RLELosslessEncoder.encode(tile, number_of_frames=1, **facts, **colours))


@dataclass(frozen=True)
class Coding:
    """How frames of colour are coded."""

    syntax: str
    photometric: str
    encode: Callable[[Image], bytes] | None = None
    """None for pixels as they are."""


CODINGS = {
    "native": Coding("1.2.840.10008.1.2.1", "RGB"),
    "native implicit": Coding("1.2.840.10008.1.2", "RGB"),
    "jpeg 4:2:0": Coding("1.2.840.10008.1.2.4.50", "YBR_FULL_422", encode_jpeg),
    "jpeg 4:4:4": Coding("1.2.840.10008.1.2.4.50", "YBR_FULL_422", lambda tile: encode_jpeg(tile, subsampling=0)),
    "jpeg rgb": Coding("1.2.840.10008.1.2.4.50", "RGB", lambda tile: encode_jpeg(tile, keep_rgb=True)),
    "jpeg 2000 lossless": Coding("1.2.840.10008.1.2.4.90", "YBR_RCT", lambda tile: bytes(imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k"))),
    "jpeg 2000": Coding("1.2.840.10008.1.2.4.91", "YBR_ICT", lambda tile: bytes(imagecodecs.jpeg2k_encode(tile, level=35, codecformat="j2k"))),
    "jpeg 2000 rgb": Coding("1.2.840.10008.1.2.4.91", "RGB", lambda tile: bytes(imagecodecs.jpeg2k_encode(tile, level=35, codecformat="j2k", mct=False))),
    "htj2k lossy": Coding("1.2.840.10008.1.2.4.203", "YBR_ICT", lambda tile: bytes(imagecodecs.htj2k_encode(tile, reversible=False))),
    "htj2k": Coding("1.2.840.10008.1.2.4.201", "YBR_RCT", lambda tile: bytes(imagecodecs.htj2k_encode(tile))),
    "rle": Coding("1.2.840.10008.1.2.5", "RGB", _encode_rle),
}  # fmt: skip


def write_coded(folder: Path, levels: list[Image], coding: str, **options: Any) -> list[Path]:
    """`write_series` with frames coded in one of `CODINGS`."""
    how, tile = CODINGS[coding], options.get("tile", 64)
    frames = None if how.encode is None else [[how.encode(each) for each in cut_frames(pixels, tile)] for pixels in levels]
    return write_series(folder, levels, frames=frames, photometric=how.photometric, syntax=how.syntax, **options)


def write_series(
    folder: Path,
    levels: list[Image],
    *,
    prefix: str = "",
    overview: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    frames: list[list[bytes]] | None = None,
    photometric: str = "RGB",
    tile: int = 64,
    table: str = "basic",
    fragments: int = 1,
    change: Callable[[int, Dataset], None] | None = None,
) -> list[Path]:
    """One series, a file a level (`<prefix>0.dcm` the finest), TILED_FULL; `frames` are each level's encoded frames where they are not to be raw.

    `table` of offsets is basic, extended or none; a frame is in `fragments`; `change` gets each data set before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    kinds = [["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]] + [["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]] * (len(levels) - 1)
    pictures = list(levels)
    if overview:
        pictures.append(np.ascontiguousarray(levels[-1][: tile // 2, : tile // 2]))
        kinds.append(["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"])
    paths = []
    for number, (pixels, kind) in enumerate(zip(pictures, kinds, strict=True)):
        scale = levels[0].shape[1] / pixels.shape[1] if "VOLUME" in kind else 20.0
        encoded = frames[number] if frames is not None and number < len(frames) else None
        data = _dataset(pixels, kind, number, common, scale, tile, photometric)
        data.file_meta.TransferSyntaxUID = syntax if encoded is not None or frames is None else ExplicitVRLittleEndian
        if encoded is not None:
            _encapsulate(data, encoded, table, fragments)
        if change is not None:
            change(number, data)
        paths.append(folder / f"{prefix}{number}.dcm")
        pydicom.dcmwrite(paths[-1], data, enforce_file_format=True)
    return paths


def cut_frames(pixels: Image, tile: int) -> list[Image]:
    """Tiles of (tile, tile, 3), or (tile, tile) of grey, row-major, those at the edge filled with white."""
    rows, cols = -(-pixels.shape[0] // tile), -(-pixels.shape[1] // tile)
    whole = np.full((rows * tile, cols * tile, *pixels.shape[2:]), np.iinfo(pixels.dtype).max, pixels.dtype)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return [np.ascontiguousarray(whole[r * tile : r * tile + tile, c * tile : c * tile + tile]) for r in range(rows) for c in range(cols)]


def _dataset(
    pixels: Image,
    kind: list[str],
    number: int,
    common: dict[str, str],
    scale: float,
    tile: int,
    photometric: str,
) -> Dataset:
    tiles = cut_frames(pixels, tile)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    for name, value in common.items():
        setattr(data, name, value)
    data.ImageType, data.Modality, data.InstanceNumber = kind, "SM", number + 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if pixels.ndim == 3 else 1, photometric
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.NumberOfFrames, data.Rows, data.Columns = len(tiles), tile, tile
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
    data.DimensionOrganizationType = "TILED_FULL"
    path = Dataset()
    path.OpticalPathIdentifier = "0"
    data.OpticalPathSequence = Sequence([path])
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.0005 * scale, 0.0005 * scale]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PixelData = b"".join(each.tobytes() for each in tiles)
    data["PixelData"].VR = "OB"
    return data


def _encapsulate(data: Dataset, frames: list[bytes], table: str, fragments: int) -> None:
    if table == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        data.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
    data["PixelData"].VR = "OB"


def make_sparse(data: Dataset, kept: list[int]) -> None:
    """Make an uncompressed TILED_FULL data set of one path and plane TILED_SPARSE, with the frames that are `kept`, in that order."""
    size = data.Rows * data.Columns * data.SamplesPerPixel
    across = -(-data.TotalPixelMatrixColumns // data.Columns)
    pixels = data.PixelData
    data.DimensionOrganizationType, data.NumberOfFrames = "TILED_SPARSE", len(kept)
    data.PixelData = b"".join(pixels[number * size : (number + 1) * size] for number in kept)
    data["PixelData"].VR = "OB"
    data.PerFrameFunctionalGroupsSequence = Sequence(
        [place_group(n // across * data.Rows + 1, n % across * data.Columns + 1) for n in kept]
    )


def place_group(row: int, column: int, depth: float = 0.0, path: str = "") -> Dataset:
    """The functional group of a frame whose upper left pixel lies there, counted from 1."""
    group, place = Dataset(), Dataset()
    place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = row, column
    place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = 0.0
    place.ZOffsetInSlideCoordinateSystem = depth
    group.PlanePositionSlideSequence = Sequence([place])
    if path:
        named = Dataset()
        named.OpticalPathIdentifier = path
        group.OpticalPathIdentificationSequence = Sequence([named])
    return group
