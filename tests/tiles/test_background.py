"""Tissue is told from the background that an image has, whatever its colour, its light and its share of the image; doubts are said."""

import tracemalloc

import numpy as np
import pytest

from tilestream.config.schema import Tissue
from tilestream.tiles.thumbnail import Thumbnail
from tilestream.tiles.tissue import find_tissue, tissue_bytes

TINTS = {"neutral": (1, 1, 1), "yellow": (1, 0.97, 0.86), "bluish": (0.9, 0.95, 1), "pink": (1, 0.9, 0.95), "amber": (1, 0.92, 0.78)}
H, W = 200, 260
Y, X = np.mgrid[:H, :W]


def shape_of(fraction):
    """A wavy shape around a point off the middle that fills a fraction of the image, or leaves out such a shape."""
    inverse = fraction > 0.5
    angle = np.arctan2(Y - 90, X - 140)
    distance = np.hypot(Y - 90, X - 140) / (1 + 0.15 * np.sin(5 * angle))
    inside = distance <= np.quantile(distance, 1 - fraction if inverse else fraction)
    return ~inside if inverse else inside


def absorbed(seed=0):
    """(h, w, 3) part of the light that eosin with nuclei takes away, with the texture of tissue."""
    rng = np.random.default_rng(seed)
    nuclei = rng.random((H, W, 1)) < 0.2
    return np.where(nuclei, (0.55, 0.7, 0.35), (0.15, 0.45, 0.25)) * rng.uniform(0.6, 1.3, (H, W, 1))


def bright_field(mask, *, tint="neutral", level=243.0, strength=1.0, light=1.0, noise=0.8, grey=False):
    rng = np.random.default_rng(1)
    pixels = level * np.array(TINTS[tint]) * np.asarray(light)[..., None] * np.where(mask[..., None], 1 - absorbed() * strength, 1)
    if grey:
        pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return (pixels + rng.normal(0, noise, (H, W, 1 if grey else 3))).round().clip(0, 255).astype(np.uint8)


def overlap(pixels, truth, **choices):
    found = find_tissue(Thumbnail(pixels, 16.0), Tissue(**choices), 8.0)
    return (found.mask & truth).sum() / (found.mask | truth).sum(), found.warnings


FRACTIONS = (0.05, 0.5, 0.95)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("tint", TINTS)
def test_glass_of_any_tint(tint, fraction):
    mask = shape_of(fraction)
    iou, warnings = overlap(bright_field(mask, tint=tint), mask)
    assert iou > 0.95
    assert not warnings


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("level", [110, 180, 250])
def test_grey_glass_of_any_brightness(level, fraction):
    mask = shape_of(fraction)
    assert overlap(bright_field(mask, level=level, grey=True), mask)[0] > 0.95


@pytest.mark.parametrize("strength", [0.25, 0.6, 1.4])
def test_stains_of_any_strength(strength):
    mask = shape_of(0.4)
    assert overlap(bright_field(mask, strength=strength, tint="yellow"), mask)[0] > 0.93


LIGHTS = {"slope": 1 - 0.12 * X / W, "vignette": 1 - 0.12 * (((Y - 100) / 100) ** 2 + ((X - 130) / 130) ** 2) / 2}


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("light", LIGHTS)
def test_uneven_light_is_no_tissue(light, grey):
    mask = shape_of(0.3)
    assert overlap(bright_field(mask, light=LIGHTS[light], grey=grey), mask)[0] > 0.95


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(("ground", "signal"), [(0, 180), (4, 40), (38, 90), (70, 150)])
@pytest.mark.parametrize("colour", [(0, 0, 1), (0, 1, 0.2), (1, 1, 1)], ids=["blue", "green", "grey"])
def test_fluorescence_of_any_colour_on_any_dark_ground(colour, ground, signal, fraction):
    mask, rng = shape_of(fraction), np.random.default_rng(2)
    glow = ground + mask[..., None] * absorbed().mean(axis=2, keepdims=True) * 2 * signal
    noise = rng.normal(0, 0.7 * (ground > 0), (H, W, 1))
    pixels = ((glow + noise) * colour).round().clip(0, 255).astype(np.uint8)
    assert overlap(pixels, mask)[0] > 0.93


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_parts_that_were_never_scanned_are_no_tissue(value, grey, fraction):
    gap = (Y < 40) & (X % 130 < 90) | (X > 230)
    mask = shape_of(fraction)
    pixels = bright_field(mask, grey=grey, tint="neutral" if grey else "amber", level=225)
    pixels[gap] = value
    assert overlap(pixels, mask & ~gap)[0] > 0.93


def test_unscanned_parts_of_fluorescence_are_no_tissue():
    mask, gap = shape_of(0.3), Y < 50
    for value in (0, 255):
        pixels = (30 + mask * absorbed().mean(axis=2) * 200 + np.random.default_rng(0).normal(0, 0.7, (H, W)))[..., None].repeat(3, 2)
        pixels[gap] = value
        assert overlap(pixels.clip(0, 255).astype(np.uint8), mask & ~gap)[0] > 0.93


@pytest.mark.parametrize("level", [(252, 252, 252), (243, 215, 190), (120, 118, 119), (40, 40, 40), (0, 0, 30)])
def test_an_image_of_background_alone_has_no_tissue(level):
    noise = np.random.default_rng(0).normal(0, 1, (H, W, 3))
    found = find_tissue(Thumbnail((level + noise).clip(0, 255).astype(np.uint8), 16.0), Tissue(), 8.0)
    assert not found.mask.any()
    assert len(found.warnings) == (max(level) < 110)  # what shines may be too dim to be seen


def test_an_image_without_background_is_tissue_and_says_so():
    iou, warnings = overlap(bright_field(np.ones((H, W), bool)), np.ones((H, W), bool))
    assert iou == 1
    assert "nothing says what the glass looks like" in warnings[0]


def test_tissue_that_hardly_stands_out_is_a_doubt():
    mask = shape_of(0.4)
    _, warnings = overlap(bright_field(mask, strength=0.1, noise=2.5), mask)
    assert any("look at the tissue, or give a mask" in words for words in warnings)


@pytest.mark.parametrize("tint", ["neutral", "bluish", "amber"])
def test_pens_are_told_from_strong_stains_on_any_glass(tint):
    mask, mark = shape_of(0.4), (Y > 150) & (Y < 170)
    pixels = bright_field(mask, tint=tint, strength=1.3)
    pixels[mark] = (np.array((30, 60, 190)) * TINTS[tint]).astype(np.uint8)
    assert overlap(pixels, mask & ~mark, pens=True)[0] > 0.93
    assert overlap(pixels, mask | mark)[0] > 0.93


def test_much_of_the_tissue_in_colours_of_pens_is_a_doubt():
    pixels = bright_field(np.zeros((H, W), bool))
    pixels[50:150, 60:200] = (30, 60, 190)
    assert any("has colours of marker pens" in words for words in overlap(pixels, Y > 0, pens=True)[1])


def test_something_too_faint_on_an_uneven_ground_is_a_doubt():
    rng = np.random.default_rng(0)
    waves = 2.2 * np.sin(X / 5) * np.sin(Y / 7) + rng.normal(0, 0.4, (H, W))
    pixels = (8 + waves)[..., None].repeat(3, 2).round().clip(0, 255).astype(np.uint8)
    assert any("too faint" in words for words in overlap(pixels, Y > 0)[1])


@pytest.mark.parametrize("side", [300, 1100])
def test_finding_tissue_takes_no_more_than_is_stated(side):
    pixels = np.tile(bright_field(shape_of(0.4)), (6, 5, 1))[:side, :side].copy()
    find_tissue(Thumbnail(pixels, 16.0), Tissue(), 8.0)  # libraries load
    tracemalloc.start()
    find_tissue(Thumbnail(pixels, 16.0), Tissue(), 8.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= tissue_bytes(side * side, searched=True)


def test_doubts_travel_with_the_plan_into_the_store(tmp_path):
    import tifffile

    import tilestream
    from tilestream.config.schema import Config
    from tilestream.runner.plan_command import plan_slides

    pixels = bright_field(np.ones((H, W), bool)).repeat(2, 0).repeat(2, 1)
    told = {"photometric": "rgb", "resolution": (2500, 2500), "resolutionunit": 3, "metadata": None}
    tifffile.imwrite(tmp_path / "full.tif", pixels, tile=(128, 128), **told)
    config = {
        "slides": str(tmp_path / "full.tif"), "output": str(tmp_path / "out"), "tiles": {"level": 0, "size": 128}, "encoder": "patch_embed",
        "pool": "none", "compute": {"scheduler": "inline", "device": "cpu"},
    }  # fmt: skip
    words = "nothing says what the glass looks like"
    assert any(words in warning for warning in plan_slides(Config(**config)).slides[0].plan.warnings)
    summary = tilestream.run(config)
    assert any(words in warning for warning in summary.slides[0].warnings)
    store = tilestream.open(tmp_path / "out" / "full.zarr")
    assert any(words in warning for warning in store.source["warnings"])


def test_a_pale_part_beside_strong_tissue_is_tissue() -> None:
    pixels = np.random.default_rng(0).normal(240, 0.5, (300, 400, 3))
    pixels[50:200, 50:150] -= (20, 150, 60)
    pixels[50:200, 150:250] -= 20  # 8 % of the light: less than the limit that strong colours set, far more than noise
    found = find_tissue(Thumbnail(np.rint(pixels).clip(0, 255).astype(np.uint8), 16.0), Tissue(), 8.0).mask
    wanted = np.zeros((300, 400), np.bool_)
    wanted[50:200, 50:250] = True
    assert (found & wanted).sum() > 0.97 * (found | wanted).sum()


def test_white_parts_of_a_dim_field_that_count_as_tissue_are_doubted() -> None:
    pixels = np.random.default_rng(0).normal(20, 1, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    pixels[:60] = pixels[60:120, 100:200] = 255
    found = find_tissue(Thumbnail(pixels, 16.0), Tissue(), 8.0)
    assert any("never scanned" in words for words in found.warnings)


@pytest.mark.parametrize(("paler", "doubted"), [(0.969, True), (1.0, False), (0.9, False)])
def test_tissue_beside_what_is_paler_than_counts_is_doubted_where_it_cannot_be_noise(paler, doubted):
    noise = np.random.default_rng(0).normal(0, 0.3, (300, 400, 1))
    picture = np.full((300, 400, 3), 246.0)
    picture[40:140, 40:240] *= (0.9, 0.78, 0.85)
    uneven = np.kron(np.indices((20, 50)).sum(axis=0) % 2, np.ones((4, 4)))[..., None]
    picture[160:240, 40:240] *= paler + 0.012 * (uneven - 0.5) * (paler < 1)
    found = find_tissue(Thumbnail(np.clip(picture + noise, 0, 255).astype(np.uint8), 16.0), Tissue(), 8.0)
    assert found.mask[60:120, 60:220].all()
    assert any("the stain is faint" in warning for warning in found.warnings) is doubted


def test_a_picture_that_is_nowhere_flat_is_all_tissue_however_small():
    busy = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    found = find_tissue(Thumbnail(busy, 1.0), Tissue(), 0.5)
    assert found.mask.all()
    assert "all of it counts as tissue" in found.warnings[0]


@pytest.mark.parametrize("level", [100, 121, 140, 180, 240])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_flat_dark_tissue_on_dim_glass_is_found_or_doubted(level, share):
    mask = shape_of(share)
    grey = level * np.where(mask, 0.45, 1.0) + np.random.default_rng(3).normal(0, 0.5, mask.shape)
    found = find_tissue(Thumbnail(grey.round().astype(np.uint8)[..., None].repeat(3, axis=2), 16.0), Tissue(method="otsu"), 16.0)
    wrong = (found.mask != mask).mean()
    assert wrong < 0.05 or any("look at the tissue, or give a mask" in words for words in found.warnings)


def flat_picture(ground, tissue, share):
    """A ground and flat tissue, and which is tissue."""
    mask = shape_of(share)
    grey = np.where(mask, tissue, ground) + np.random.default_rng(3).normal(0, 0.5, mask.shape)
    return grey.round().clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=2), mask


BRIGHT = [(level, 0.45 * level) for level in (60, 100, 180)]
DARK = [(5, 40), (5, 120), (30, 90), (60, 180), (100, 150)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("stated", "ground", "tissue"),
    [("bright", *levels) for levels in BRIGHT] + [("dark", *levels) for levels in (*DARK, (120, 180))],
)
def test_on_a_ground_that_is_stated_flat_tissue_is_found(stated, ground, tissue, share):
    pixels, mask = flat_picture(ground, tissue, share)
    found = find_tissue(Thumbnail(pixels, 16.0), Tissue(ground=stated), 16.0)
    assert (found.mask != mask).mean() < 0.05
    assert not any("was taken for the ground" in words for words in found.warnings)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("right", "ground", "tissue"), [("bright", *levels) for levels in BRIGHT] + [("dark", *levels) for levels in DARK])
def test_where_the_wrong_flat_part_is_taken_for_the_ground_what_to_write_is_told(right, ground, tissue, share):
    pixels, mask = flat_picture(ground, tissue, share)
    found = find_tissue(Thumbnail(pixels, 16.0), Tissue(), 16.0)
    told = any(f"write tiles: {{tissue: {{ground: {right}}}}}" in words for words in found.warnings)
    assert told or (found.mask != mask).mean() < 0.05


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("tint", ["neutral", "amber"])
def test_a_ground_that_is_stated_as_it_is_changes_nothing(tint, fraction):
    pixels = bright_field(shape_of(fraction), tint=tint)
    auto, stated = (find_tissue(Thumbnail(pixels, 16.0), Tissue(ground=ground), 8.0) for ground in ("auto", "bright"))
    assert (auto.mask == stated.mask).all()


def test_what_shines_on_a_dark_ground_is_no_doubt():
    mask = shape_of(0.3)
    grey = 12 + mask * (110 + 60 * np.random.default_rng(3).random(mask.shape)) + np.random.default_rng(4).normal(0, 0.5, mask.shape)
    found = find_tissue(Thumbnail(grey.round().astype(np.uint8)[..., None].repeat(3, axis=2), 16.0), Tissue(method="otsu"), 16.0)
    assert (found.mask != mask).mean() < 0.05
    assert found.warnings == ()


def two_greys(ground, thing, fraction, *, texture=0.0):
    """An even grey ground and on it something grey; its pixels, and where that is."""
    mask, rng = shape_of(fraction), np.random.default_rng(3)
    there = thing * rng.uniform(1 - texture, 1 + texture, (H, W, 1))
    pixels = np.where(mask[..., None], there, float(ground)) + rng.normal(0, 1, (H, W, 1))
    return pixels.round().clip(0, 255).astype(np.uint8).repeat(3, axis=2), mask


@pytest.mark.parametrize("fraction", [0.1, 0.6])
@pytest.mark.parametrize(("ground", "thing"), [(100, 130), (140, 170), (140, 200), (180, 230), (140, 230)])
def test_two_flat_greys_are_doubted_and_a_word_settles_it(ground, thing, fraction):
    pixels, mask = two_greys(ground, thing, fraction)
    _, warnings = overlap(pixels, mask)
    assert any("ground: dark" in words for words in warnings)
    assert overlap(pixels, mask, ground="dark")[0] > 0.9


@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_much_that_is_brighter_than_the_glass_is_doubted(fraction):
    pixels, mask = two_greys(180, 225, fraction, texture=0.1)
    assert overlap(pixels, mask)[1]


@pytest.mark.parametrize("fraction", [0.1, 0.6])
@pytest.mark.parametrize("level", [150, 200, 243])
def test_grey_tissue_with_texture_on_glass_is_not_doubted(level, fraction):
    mask = shape_of(fraction)
    iou, warnings = overlap(bright_field(mask, level=level, grey=True), mask)
    assert iou > 0.95
    assert not any("ground: " in words for words in warnings)
