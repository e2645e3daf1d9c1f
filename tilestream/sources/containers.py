"""Formats that tilestream does not read, and files that are only a part of a slide: what they are, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilestream.config.dicom_series import is_dicom
from tilestream.config.local_files import SMALL_FILE, refuse_special
from tilestream.errors import InputError

TO_OME_ZARR = "Convert it to OME-Zarr, keeping all its levels: bioformats2raw {name} {stem}.zarr"

OVERVIEWS = {
    ".vsi": (
        "is an Olympus (Evident) container: the TIFF in it is an overview of the whole glass, and the slide lies in {folder}",
        TO_OME_ZARR,
    ),
    ".ets": ("holds the pixels of an Olympus (Evident) slide, but not what they are", "Convert the .vsi that stands above its folder: bioformats2raw slide.vsi slide.zarr"),
    ".afi": ("is an Aperio list of the files of a fluorescence slide, one a channel", "Name the .svs files that are listed in it"),
    ".ndpis": ("is a Hamamatsu list of the files of a fluorescence slide, one a channel", "Name the .ndpi files that are listed in it"),
    ".dzi": ("is a DeepZoom description, whose tiles lie in files of their own", "Name the slide that it was made of"),
    ".ome": ("is the metadata of an OME-TIFF in several files", TO_OME_ZARR),
}  # fmt: skip
"""Files that are a part of a slide, or a picture of it, and must not be taken for it, by suffix: what they are, and the way out."""

FOREIGN = {
    ".czi": ("Zeiss CZI, in a form that OpenSlide does not read", TO_OME_ZARR),
    ".isyntax": ("Philips iSyntax", "Convert it to OME-Zarr with isyntax2raw, or export a Philips TIFF from the image management system"),
    ".i2syntax": ("Philips iSyntax2", "Export DICOM or a Philips TIFF from the image management system"),
    ".mrxs": ("3DHISTECH MIRAX; the file is an overview, and the slide lies in the folder of the same name beside it", "Copy that folder ({stem}/) as well"),
    ".kfb": ("KFBio", "Export it as SVS or TIFF with the vendor's converter"),
    ".sdpc": ("SQRAY SDPC", "Export it as SVS with the vendor's converter"),
    ".tmap": ("UNIC TMAP", "Export it as SVS or TIFF with the vendor's converter"),
    ".mdsx": ("Motic", "Export it as SVS or TIFF with the vendor's viewer"),
    ".lif": ("Leica LIF", TO_OME_ZARR),
    ".nd2": ("Nikon ND2", TO_OME_ZARR),
    ".ims": ("Imaris", TO_OME_ZARR),
    ".oir": ("Olympus OIR", TO_OME_ZARR),
    ".zvi": ("Zeiss ZVI", TO_OME_ZARR),
    ".gif": ("GIF", "Save it as PNG"),
    ".bmp": ("BMP", "Save it as PNG"),
    ".webp": ("WebP", "Save it as PNG"),
    ".pdf": ("PDF", "Export its picture as PNG or TIFF"),
    ".h5": ("HDF5", "Store the image as OME-Zarr"),
}  # fmt: skip
"""Formats that nothing here reads, by suffix: their names, and the way out."""

SIS_TAG, SIS_WORDS = 33560, "<OME-metadata not available>"
"""What Olympus writes into the TIFF of a container, whatever the file is called."""


def refuse_overview(address: str) -> None:
    """Refuse a file that is not the slide, though a TIFF or JPEG reader would take it for one. Raises InputError."""
    path = Path(address)
    found = OVERVIEWS.get(path.suffix.lower())
    if found is not None:
        raise InputError(f"{address}: {_filled(found[0], path)}. {_filled(found[1], path)}")


def refuse_olympus(page: Any, address: str) -> None:
    """Refuse the overview of an Olympus container that goes by another name. Raises InputError."""
    path = Path(address)
    if page.tags.get(SIS_TAG) is None:
        return
    if SIS_WORDS in str(page.description) or (path.parent / f"_{path.stem}_").is_dir():
        what, way = OVERVIEWS[".vsi"]
        raise InputError(f"{address}: {_filled(what, path)}. {_filled(way, path)}")


def foreign_words(address: str) -> str:
    """What a file is that no backend reads, and the way out, as a sentence; "" where its suffix is not known."""
    path = Path(address)
    found = FOREIGN.get(path.suffix.lower())
    return "" if found is None else f"{address}: is {_filled(found[0], path)}, which is not read. {_filled(found[1], path)}"


def _filled(words: str, path: Path) -> str:
    """Words with the names of the file in them; of an Olympus container, the files that hold its pixels."""
    folder = path.parent / f"_{path.stem}_"
    inside = sorted(str(each.relative_to(path.parent)) for each in folder.glob("**/*.ets")) if folder.is_dir() else []
    place = ", ".join(inside[:3]) if inside else f"_{path.stem}_/stack*/frame_t*.ets, which is not beside it"
    return words.format(name=path.name, stem=path.stem, folder=place)


def refuse_special_beside(path: Path) -> None:
    """Refuse a FIFO, a socket or a device among the files that OpenSlide opens beside the one that is named: it would wait for ever.

    Those are all files in the folder of a DICOM file, those in the folder of a .mrxs, and those that a .vms or .vmu names.
    """
    suffix = path.suffix.lower()
    if suffix in (".vms", ".vmu"):
        with path.open("rb") as file:
            lines = file.read(SMALL_FILE).decode("utf-8", "replace").splitlines()
        beside = [path.parent / value for line in lines if (value := line.partition("=")[2].strip())]
    elif suffix == ".mrxs" or is_dicom(path):
        folder = path.with_suffix("") if suffix == ".mrxs" else path.parent
        beside = sorted(folder.iterdir()) if folder.is_dir() else []
    else:
        return
    for each in beside:
        refuse_special(each)
