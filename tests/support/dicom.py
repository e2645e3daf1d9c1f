"""Whole-slide images in DICOM, written by pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

Image = NDArray[np.uint8]


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
) -> list[Path]:
    """One series, a file a level (`<prefix>0.dcm` the finest), TILED_FULL; `frames` are each level's encoded frames where they are not to be raw."""
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
        data = _dataset(pixels, kind, number, common, scale, tile, photometric, encoded)
        data.file_meta.TransferSyntaxUID = syntax if encoded is not None or frames is None else ExplicitVRLittleEndian
        paths.append(folder / f"{prefix}{number}.dcm")
        pydicom.dcmwrite(paths[-1], data, enforce_file_format=True)
    return paths


def cut_frames(pixels: Image, tile: int) -> list[Image]:
    """Tiles of (tile, tile, 3), row-major, those at the edge filled with white."""
    rows, cols = -(-pixels.shape[0] // tile), -(-pixels.shape[1] // tile)
    whole = np.full((rows * tile, cols * tile, 3), 255, np.uint8)
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
    encoded: list[bytes] | None,
) -> Dataset:
    tiles = cut_frames(pixels, tile)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    for name, value in common.items():
        setattr(data, name, value)
    data.ImageType, data.Modality, data.InstanceNumber = kind, "SM", number + 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, 0
    data.NumberOfFrames, data.Rows, data.Columns = len(tiles), tile, tile
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
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
    data.PixelData = encapsulate(encoded) if encoded is not None else b"".join(each.tobytes() for each in tiles)
    data["PixelData"].VR = "OB"
    return data
