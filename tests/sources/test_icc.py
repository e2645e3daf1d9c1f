"""Colour profiles: applied where asked for, the same by piece, region and tile; never a reason to fail."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.support.images import make_image, write_pyramid
from tests.support.profiles import odd_profile, srgb_profile
from tilestream.geometry import Region
from tilestream.sources import open_source
from tilestream.sources.base import SourceOptions
from tilestream.sources.wrapped.icc import BLOCK_PIXELS

PIXELS = make_image(300, 1000, 3)


def write(tmp_path, profile):
    options = {} if profile is None else {"iccprofile": profile}
    return str(write_pyramid(tmp_path / "a.tif", PIXELS, tile=128, levels=1, compression="lzw", **options))


def expected(profile):
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(ImageCms.core.profile_frombytes(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent(0)
    )
    return np.asarray(ImageCms.applyTransform(Image.fromarray(PIXELS), transform))


def test_pixels_become_srgb_however_they_are_read(tmp_path):
    path = write(tmp_path, odd_profile())
    wanted = expected(odd_profile())
    assert (wanted != PIXELS).mean() > 0.5
    assert BLOCK_PIXELS < 300 * 1000  # converted in more than one block
    with open_source(path, SourceOptions(icc=True)) as source:
        assert source.info.properties["icc"] == "applied"
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 300, 1000)), wanted)
        np.testing.assert_array_equal(source.read_region(0, Region(100, 77, 90, 333)), wanted[100:190, 77:410])
        np.testing.assert_array_equal(source.read_segment(0, 1, 2), wanted[128:256, 256:384])
        assert (source.read_region(0, Region(290, 990, 20, 20))[10:] == 255).all()


def test_a_profile_is_left_alone_unless_it_is_asked_for(tmp_path):
    with open_source(write(tmp_path, odd_profile()), SourceOptions()) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 300, 1000)), PIXELS)
        assert source.info.properties["icc_profile"] == f"{len(odd_profile())} bytes"
        assert "icc" not in source.info.properties


@pytest.mark.parametrize(
    ("profile", "state", "words"),
    [
        (None, "absent", "holds no colour profile"),
        (b"\x00" * 500, "unusable", "no ICC profile"),
        (srgb_profile()[:300], "unusable", "cut off: 300 of"),
        (srgb_profile()[:16] + b"CMYK" + srgb_profile()[20:], "unusable", "for CMYK colours"),
        (srgb_profile()[:132] + b"\xff" * (len(srgb_profile()) - 132), "unusable", "colour profile cannot be used"),
    ],
)
def test_a_missing_or_broken_profile_is_a_warning_and_pixels_stay(tmp_path, profile, state, words):
    with open_source(write(tmp_path, profile), SourceOptions(icc=True)) as source:
        np.testing.assert_array_equal(source.read_region(0, Region(0, 0, 300, 1000)), PIXELS)
        assert source.info.properties["icc"] == state
        assert words in source.info.warnings[-1]


def test_openslide_hands_over_its_profile(tmp_path, slides):
    path = str(slides / "CMU-1-Small-Region.svs")
    with open_source(path, SourceOptions(backend="openslide", icc=True)) as source, open_source(path, SourceOptions(icc=True)) as ours:
        assert source.info.properties["icc"] == ours.info.properties["icc"]
        region = Region(500, 500, 64, 64)
        np.testing.assert_array_equal(source.read_region(0, region), ours.read_region(0, region))
