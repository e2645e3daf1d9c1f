"""Which pages are the slide: OpenSlide, tifffile and the pictures that were written are the judges."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from tests.support.images import make_image, write_pyramid
from tilestream.errors import InputError
from tilestream.geometry import Region, Size
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.index import index_tiff
from tilestream.sources.tiff.source import TiffSource
from tilestream.testing.sources import Image


def test_images_of_comparable_size_are_scenes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    images = [make_image(200, 300, 1), make_image(210, 250, 2)]
    with tifffile.TiffWriter(path) as tif:
        for name, image in zip(["first", "second"], images, strict=True):
            tif.write(image, photometric="rgb", metadata={"Name": name})
        tif.write(make_image(150, 290, 3), photometric="rgb", metadata={"Name": "macro image"})
    with pytest.raises(InputError, match=r"holds 2 images \(0: 'first' 200 x 300, 1: 'second' 210 x 250\)\. .*source: \{scene: 0\}"):
        TiffSource(str(path), SourceOptions())
    with TiffSource(str(path), SourceOptions(scene=1)) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 210, 250)), images[1])
    with pytest.raises(InputError, match=r"source\.scene: 2, but the file has scenes 0 to 1"):
        TiffSource(str(path), SourceOptions(scene=2))


def test_pages_of_another_shape_are_not_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        common: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        tif.write(make_image(200, 400), **common)
        tif.write(make_image(100, 200), subfiletype=1, **common)
        tif.write(make_image(90, 90), subfiletype=1, **common)
    with TiffSource(str(path), SourceOptions()) as source:
        assert [level.size for level in source.info.levels] == [Size(200, 400), Size(100, 200)]


def test_mask_pages_are_not_levels(slides: Path) -> None:
    with TiffSource(str(slides / "cogeo.tif"), SourceOptions()) as source:
        assert [level.size.width for level in source.info.levels] == [1024, 512, 256, 128, 64, 32, 16]


@pytest.mark.parametrize("coding", [{"subsampling": (2, 2)}, {"subsampling": (1, 1)}])
def test_levels_made_by_the_decoder_are_close_to_the_average(tmp_path: Path, coding: dict[str, Any]) -> None:
    faint = make_image(500, 700, 3) // 4 + 96  # the average is of clipped values, the decoder clips the average
    path = write_pyramid(tmp_path / "a.tif", faint, levels=1, **coding)
    with TiffSource(str(path), SourceOptions()) as plain, TiffSource(str(path), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0, 4.0]
        assert [level.size for level in source.info.levels] == [Size(500, 700), Size(250, 350), Size(125, 175)]
        full = source.read_region(0, Region(0, 0, 500, 700))
        np.testing.assert_array_equal(full, plain.read_region(0, Region(0, 0, 500, 700)))
        for level, factor in ((1, 2), (2, 4)):
            size = source.info.levels[level].size
            reduced = source.read_region(level, Region(0, 0, size.height, size.width)).astype(int)
            average = full.reshape(size.height, factor, size.width, factor, 3).mean(axis=(1, 3))
            assert np.abs(reduced - average).mean() < 1.0


def test_no_level_is_made_where_the_file_has_it_or_the_codec_cannot(tmp_path: Path) -> None:
    image = make_image(512, 512, 3)
    has = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=3)
    with TiffSource(str(has), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0, 4.0, 8.0, 16.0]
    cannot = write_pyramid(tmp_path / "b.tif", image, tile=128, levels=2, compression="deflate")
    with TiffSource(str(cannot), SourceOptions(reduced=True)) as source:
        assert [level.downsample for level in source.info.levels] == [1.0, 2.0]


def flat(height: int, width: int, colour: tuple[int, int, int]) -> Image:
    return np.full((height, width, 3), colour, np.uint8)


def levels_of(path: Path, options: SourceOptions = SourceOptions()) -> list[tuple[int, int, list[int]]]:  # noqa: B008
    """Height, width and colour of the first pixel of each level."""
    with open_source(str(path), options) as source:
        return [
            (level.size.height, level.size.width, source.read_region(k, Region(0, 0, 1, 1))[0, 0].tolist())
            for k, level in enumerate(source.info.levels)
        ]


BLUE, PINK, GREEN = (60, 80, 200), (230, 120, 170), (20, 160, 60)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_reduced_pages_belong_to_the_page_before_them(tmp_path: Path, order: tuple[str, str]) -> None:
    images = {"a": flat(512, 640, BLUE), "b": flat(1024, 1280, PINK)}
    with tifffile.TiffWriter(tmp_path / "two.tif") as tif:
        for name in order:
            for k in (1, 2, 4):
                tif.write(images[name][::k, ::k], tile=(128, 128), photometric="rgb", subfiletype=int(k > 1), metadata=None)
    with pytest.raises(InputError, match="the file holds 2 images"):
        open_source(str(tmp_path / "two.tif"), SourceOptions())
    for scene, name in enumerate(order):
        pixels = images[name]
        expected = [(pixels.shape[0] // k, pixels.shape[1] // k, pixels[0, 0].tolist()) for k in (1, 2, 4)]
        assert levels_of(tmp_path / "two.tif", SourceOptions(scene=scene)) == expected


@pytest.mark.parametrize(
    "writing",
    [
        {"rowsperstrip": 16, "description": "macro"},
        {"rowsperstrip": 16},
        {"tile": (64, 64), "description": "Label image"},
        {"tile": (64, 64), "description": "Aperio Image Library v12\nmacro 200x160"},
    ],
)
def test_a_flagged_macro_is_no_level(tmp_path: Path, writing: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for k in (1, 2):
            tif.write(flat(1024 // k, 1280 // k, PINK), tile=(128, 128), photometric="rgb", metadata=None, subfiletype=k - 1)
        tif.write(flat(160, 200, GREEN), photometric="rgb", subfiletype=1, metadata=None, **writing)
    assert levels_of(path) == [(1024, 1280, list(PINK)), (512, 640, list(PINK))]


@pytest.mark.parametrize("beside", [(100, 104), (250, 260), (70, 300)])
def test_a_picture_between_an_image_and_its_smaller_copies_takes_none_of_them(tmp_path: Path, beside: tuple[int, int]) -> None:
    path, image = tmp_path / "a.tif", make_image(400, 600)
    common: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tif:
        tif.write(image, tile=(64, 64), **common)
        tif.write(make_image(*beside, 3), rowsperstrip=16, description="macro", **common)
        for k in (2, 4):
            tif.write(image[::k, ::k].copy(), tile=(64, 64), subfiletype=1, **common)
    with TiffSource(str(path), SourceOptions()) as source, openslide.OpenSlide(path) as judge:
        assert [(level.size.width, level.size.height) for level in source.info.levels] == list(judge.level_dimensions)
        np.testing.assert_array_equal(source.read_region(1, Region(0, 0, 200, 300)), image[::2, ::2])


def test_a_reduced_page_before_the_image_is_no_level_of_it(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for pixels, flag in ((flat(128, 160, GREEN), 1), (flat(512, 640, BLUE), 0), (flat(256, 320, BLUE), 1)):
            tif.write(pixels, tile=(64, 64), photometric="rgb", subfiletype=flag, metadata=None)
    assert levels_of(tmp_path / "a.tif") == [(512, 640, list(BLUE)), (256, 320, list(BLUE))]


def test_sub_ifds_are_levels_of_their_own_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(flat(512, 640, BLUE), tile=(128, 128), photometric="rgb", subifds=1, metadata=None)
        tif.write(flat(256, 320, BLUE), tile=(128, 128), photometric="rgb", subfiletype=1, metadata=None)
        tif.write(flat(128, 160, GREEN), tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None, description="thumbnail")
    assert levels_of(tmp_path / "a.tif") == [(512, 640, list(BLUE)), (256, 320, list(BLUE))]


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations((2, 4, 8))))
def test_sub_ifds_are_levels_in_whatever_order(tmp_path: Path, order: tuple[int, ...], ome: bool) -> None:
    colours = {1: BLUE, 2: GREEN, 4: (1, 2, 3), 8: (200, 100, 50)}
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=ome) as tif:
        tif.write(flat(512, 640, BLUE), tile=(128, 128), photometric="rgb", subifds=3, metadata={} if ome else None)
        for k in order:
            tif.write(flat(512 // k, 640 // k, colours[k]), tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    assert levels_of(tmp_path / "a.tif") == [(512 // k, 640 // k, list(colour)) for k, colour in colours.items()]


def write_stack(path: Path, planes: Image, orders: list[tuple[int, ...]], writer: str) -> Path:
    """Planes with SubIFDs in orders of their own: as tifffile describes stacks, as OME-TIFF, or without a description."""
    common: dict[str, Any] = {"tile": (64, 64), "photometric": "minisblack"}
    told: dict[str, Any] = {"metadata": {"axes": "ZYX"} if writer != "plain" else None}
    with tifffile.TiffWriter(path, ome=writer == "ome") as tif:
        for each, order in [(planes, orders[0])] if writer != "plain" else zip(planes, orders, strict=True):
            tif.write(each, subifds=len(order), **common, **told)
            for k in order:
                tif.write(np.ascontiguousarray(each[..., ::k, ::k]), subfiletype=1, **common, **told)
    return path


@pytest.mark.parametrize("writer", ["plain", "shaped", "ome"])
@pytest.mark.parametrize("turns", [(0, 0, 0), (0, 1, 2)])
@pytest.mark.parametrize("order", list(itertools.permutations((2, 4, 8))))
def test_sub_ifds_of_every_plane_of_a_stack_are_levels_in_whatever_order(
    tmp_path: Path, writer: str, turns: tuple[int, ...], order: tuple[int, ...]
) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 256, 320), np.uint8)
    path = write_stack(tmp_path / "a.tif", planes, [order[turn:] + order[:turn] for turn in turns], writer)
    for z, plane in enumerate(planes):
        with open_source(str(path), SourceOptions(z=z)) as source:
            assert [level.downsample for level in source.info.levels] == [1.0, 2.0, 4.0, 8.0]
            for k, level in enumerate(source.info.levels):
                pixels = source.read_region(k, Region(0, 0, level.size.height, level.size.width))
                np.testing.assert_array_equal(pixels[..., 0], plane[:: 2**k, :: 2**k])


def test_pages_of_one_shape_without_flags_stay_a_stack(tmp_path: Path) -> None:
    stack = np.stack([make_image(100, 120, seed) for seed in range(3)])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="rgb", metadata=None)
    with pytest.raises(InputError, match=r"axis I is 3 long.*source: \{z: 0\}"):
        open_source(str(tmp_path / "a.tif"), SourceOptions())
    with open_source(str(tmp_path / "a.tif"), SourceOptions(z=2)) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 100, 120)), stack[2])


APERIO = "Aperio Leica Biosystems GT450 v1.0.0 \n%dx%d [0,0,%dx%d] (256x256) JPEG/YCC Q=91|AppMag = 40|MPP = 0.2639"


@pytest.mark.parametrize(
    "pages",
    [
        [0, "thumbnail", 1, 2, "label", "macro"],
        [0, 1, 2],
        [0, "label", "macro", "thumbnail", 1, 2],
        [0, 1, "thumbnail", 2, "macro"],
        [0, 1, 2, "macro"],
    ],
)
def test_aperio_levels_are_openslides_whichever_pages_are_beside_them(tmp_path: Path, pages: list[Any]) -> None:
    path, image = tmp_path / "a.svs", make_image(1024, 1280)
    with tifffile.TiffWriter(path) as tif:
        for page in pages:
            if isinstance(page, int):
                pixels = image[:: 4**page, :: 4**page]
                h, w = pixels.shape[:2]
                tif.write(pixels, tile=(128, 128), photometric="rgb", compression="zlib", metadata=None, description=APERIO % (w, h, w, h))
            else:
                words = APERIO % (80, 64, 80, 64) if page == "thumbnail" else f"Aperio\n{page} 80x64"
                flag = {"thumbnail": 0, "label": 1, "macro": 9}[page]
                tif.write(image[::16, ::16], rowsperstrip=16, photometric="rgb", metadata=None, description=words, subfiletype=flag)
    judge = openslide.OpenSlide(path)
    with open_source(str(path), SourceOptions()) as source:
        assert source.info.backend == "tiff"
        assert [(level.size.width, level.size.height) for level in source.info.levels] == list(judge.level_dimensions)
        for k in range(3):
            expected = np.asarray(judge.read_region((0, 0), k, (40, 40)).convert("RGB"))
            np.testing.assert_array_equal(source.read_region(k, Region(0, 0, 40, 40)), expected)


def write_ome(path: Path, images: list[tuple[str, Image]], **options: Any) -> Path:
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, pixels in images:
            metadata = {"axes": "YXS", "Name": name, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
            tif.write(pixels, subifds=1, tile=(128, 128), photometric="rgb", metadata=metadata, **options)
            tif.write(pixels[::2, ::2], subfiletype=1, tile=(128, 128), photometric="rgb", **options)
    return path


@pytest.mark.parametrize("name", ["heat map", "TMA core map 3", "macrophages", "overview scan 2.svs #1", "label", "Macro image"])
def test_an_ome_image_that_is_alone_is_the_slide_whatever_its_name(tmp_path: Path, name: str) -> None:
    image = make_image(512, 640)
    with open_source(str(write_ome(tmp_path / "a.ome.tif", [(name, image)])), SourceOptions()) as source:
        assert (source.info.backend, source.info.mpp, len(source.info.levels)) == ("tiff", 0.25, 2)
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 512, 640)), image)


@pytest.mark.parametrize("name", ["2021-07 heat map cohort.svs #1", "thumbnail of everything", "label"])
def test_the_largest_ome_image_is_never_left_out(tmp_path: Path, name: str) -> None:
    path = write_ome(tmp_path / "a.ome.tif", [(name, make_image(1024, 1280)), ("ROI 2", make_image(200, 300))])
    with open_source(str(path), SourceOptions()) as source:
        assert (source.info.size.height, source.info.size.width) == (1024, 1280)
    path = write_ome(tmp_path / "b.ome.tif", [(name, make_image(1024, 1280)), ("ROI 2", make_image(500, 700))])
    with pytest.raises(InputError, match=r"holds 2 images \(0: .*1024 x 1280, 1: 'ROI 2' 500 x 700\)"):
        open_source(str(path), SourceOptions())


@pytest.mark.parametrize("name", ["label", "Macro image", " THUMBNAIL "])
def test_a_picture_that_is_called_exactly_so_is_left_out(tmp_path: Path, name: str) -> None:
    path = write_ome(tmp_path / "a.ome.tif", [("slide", make_image(600, 640)), (name, make_image(400, 500))])
    with open_source(str(path), SourceOptions()) as source:
        assert (source.info.size.height, source.info.size.width) == (600, 640)


def test_of_each_piece_two_numbers_are_kept_and_no_lists_of_the_reader_beside_them(tmp_path: Path) -> None:
    pieces = 128 * 128
    tifffile.imwrite(tmp_path / "small_tiles.tif", np.zeros((2048, 2048), np.uint8), tile=(16, 16))
    index_tiff(str(tmp_path / "small_tiles.tif"), SourceOptions())  # what is loaded at the first use
    gc.collect()
    gc.disable()  # its objects hold one another: what they hold stays until the collector comes by
    tracemalloc.start()
    try:
        index = index_tiff(str(tmp_path / "small_tiles.tif"), SourceOptions())
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert index.levels[0].pages[0].offsets.shape == (pieces,)
    assert held < 2 * 16 * pieces
