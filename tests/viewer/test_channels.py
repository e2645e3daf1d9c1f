"""Fluorescence in a browser: which channels are shown, in which colour and range; what the address holds of it."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.support.runs import embed
from tests.support.viewing import browsing, settled, until

pytestmark = pytest.mark.slow

NAMES = ["DAPI", "CD3", "CD8", "Ki67"]
VALUES = np.array([400, 1000, 2000, 3200])
"""Of the channels, everywhere the same."""


@pytest.fixture(scope="module")
def fluorescence(tmp_path_factory):
    """An output of a slide of four channels of 16 bits, of which the first three were read, 0 to 4,000; and another of one file."""
    folder = tmp_path_factory.mktemp("channels")
    pixels = np.broadcast_to(VALUES[:, None, None], (4, 600, 700)).astype(np.uint16)
    for name in "fg":
        tifffile.imwrite(
            folder / f"{name}.ome.tif", pixels, ome=True, tile=(256, 256), metadata={"axes": "CYX", "Channel": {"Name": NAMES}}, photometric="minisblack"
        )  # fmt: skip
    source = {"channels": NAMES[:3], "window": [0, 4000]}
    embed([folder / f"{name}.ome.tif" for name in "fg"], folder / "out", source=source)
    return folder / "out"


def shown(page):
    """The colour in the middle of the slide on the screen."""
    until(page, "pane().osd.world.getItemCount() == 1 && pane().osd.world.getItemAt(0).getFullyLoaded()")
    page.evaluate(
        "pane().outlines = false; pane().repaint(); new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    x, y = page.evaluate("at(350, 300)")
    picture = Image.open(io.BytesIO(page.screenshot(clip={"x": x - 4, "y": y - 4, "width": 8, "height": 8})))
    return np.asarray(picture.convert("RGB")).mean(axis=(0, 1))


def as_seen(channels, low=0, high=4000):
    """What channels as red, green, blue look like in a range."""
    return np.clip((VALUES[list(channels)] - low) / (high - low), 0, 1) * 255


def test_channels_colours_and_range_are_chosen_and_kept_in_the_address(fluorescence):
    with browsing(fluorescence, state="#panel=image") as (page, asked):
        np.testing.assert_allclose(shown(page), as_seen([0, 1, 2]), atol=3)
        colours = [page.get_by_label(f"shown {name}") for name in ("red", "green", "blue")]
        assert [each.input_value() for each in colours] == ["0", "1", "2"]
        assert colours[0].locator("option").all_inner_texts() == NAMES
        colours[0].focus()
        page.keyboard.press("End")  # by the keyboard: the last channel is red, and no key of the page has been pressed
        until(page, "pane().look.includes('3,1,2') || pane().look.includes('3%2C1%2C2')")
        np.testing.assert_allclose(shown(page), as_seen([3, 1, 2]), atol=3)
        page.get_by_label("black is the value").fill("1000")
        page.get_by_label("white is the value").fill("3000")
        page.keyboard.press("Tab")
        until(page, "location.hash.includes('1000') && location.hash.includes('3000')")
        expected = as_seen([3, 1, 2], 1000, 3000)
        np.testing.assert_allclose(shown(page), expected, atol=3)
        page.get_by_label("blue", exact=True).uncheck()
        page.get_by_label("gamma").press("ArrowRight")
        until(page, "location.hash.includes('1.05_2')")
        expected = 255 * (expected / 255) ** (1 / 1.05) * [1, 1, 0]
        np.testing.assert_allclose(shown(page), expected, atol=4)

        page.reload()
        settled(page)
        np.testing.assert_allclose(shown(page), expected, atol=4)
        assert [each.input_value() for each in colours] == ["3", "1", "2"]
        assert page.get_by_label("white is the value").input_value() == "3000"
        assert not page.get_by_label("blue", exact=True).is_checked()
        page.get_by_role("button", name="As it is").click()
        np.testing.assert_allclose(shown(page), as_seen([3, 1, 2], 1000, 3000), atol=3)

        page.locator(".head select").select_option(index=1)
        until(page, "pane().facts.id.startsWith('g')")
        np.testing.assert_allclose(shown(page), as_seen([0, 1, 2]), atol=3)  # channels are those of one file
        assert [each.input_value() for each in colours] == ["0", "1", "2"]
        assert any("channels=3" in url for url in asked)


def test_of_channels_that_are_chosen_quickly_the_last_are_shown(fluorescence):
    with browsing(fluorescence, state="#panel=image") as (page, _):
        page.evaluate("['channels=1,1,1', 'channels=3,3,3', 'channels=2,2,2'].forEach((look) => pane().relook(look))")
        until(page, "pane().osd.world.getItemCount() == 1 && pane().osd.world.getItemAt(0).source.getTileUrl(0, 0, 0).includes('2,2,2')")
        np.testing.assert_allclose(shown(page), as_seen([2, 2, 2]), atol=3)
