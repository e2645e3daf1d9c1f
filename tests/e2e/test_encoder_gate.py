"""The numbers of the gate, and of sources left out, are those of plain arithmetic."""

import json

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.bench_encoder_sources import OPTIONS, OrganFeatures, SourceFeatures, fit_stain_removal, main, measure_organ, measure_source
from benchmarks.encoder_gate import measure_gate, measure_participation, passes_gate
from benchmarks.probing import fit_probe
from benchmarks.tile_features import channel_histogram, quarter_tiles
from tests.support.random_models import tissue


def drawn(pictures=12, tiles=5, dim=6):
    """Features of tiles that lie about their picture's, and those about their class's."""
    draw = np.random.default_rng(0)
    classes = np.arange(pictures) % 3
    middles = draw.normal(size=(3, dim))[classes] * 3 + draw.normal(size=(pictures, dim))
    image = np.repeat(np.arange(pictures), tiles)
    return middles[image] + draw.normal(size=(len(image), dim)), image, classes


def test_the_gates_numbers_are_plain_arithmetic():
    features, image, classes = drawn()
    shifted = features + 0.1
    found = measure_gate(torch.from_numpy(features).float(), torch.from_numpy(shifted).float(), torch.from_numpy(image), classes, seed=0)
    unit, moved = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (features, shifted))
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    variances = np.linalg.eigvalsh(np.cov(features.T))
    assert np.isclose(found["same picture"]["mean"], np.mean(image[near.argmax(1)] == image))
    assert np.isclose(found["stain shift"]["mean"], np.mean((moved @ unit.T).argmax(1) == np.arange(len(image))))
    assert np.isclose(found["participation"]["mean"], variances.sum() ** 2 / (variances**2).sum(), rtol=1e-4)
    assert found["participation"]["low"] < found["participation"]["mean"] <= features.shape[1]
    assert not passes_gate(found)


def test_the_histogram_of_channels_counts_every_pixel_once():
    tiles = tissue(32)
    found = channel_histogram(tiles)
    assert found.shape == (2, 48)
    expected = np.concatenate([np.histogram(channel, bins=16, range=(0, 256))[0] for channel in tiles[0].numpy()]) / 32**2
    assert np.allclose(found[0].square(), expected)


def test_neighbours_vote_by_how_near_they_are():
    features, image, classes = drawn(pictures=9, tiles=4)
    features = features + np.random.default_rng(1).normal(size=features.shape) * 4
    found = measure_gate(torch.from_numpy(features), torch.from_numpy(features), torch.from_numpy(image), classes, seed=0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = []
    for row, own in zip(unit @ unit.T, image, strict=True):
        near = sorted(((cosine, classes[other]) for cosine, other in zip(row, image, strict=True) if other != own), reverse=True)[:20]
        right.append(classes[own] == max(range(3), key=lambda label: sum(np.exp(c / 0.07) for c, its in near if its == label)))
    assert 0.3 < np.mean(right) < 1
    assert np.isclose(found["knn"]["mean"], np.mean(right))


def test_the_interval_of_participation_is_that_of_drawn_pictures():
    features, image, _ = drawn()
    found = measure_participation(torch.from_numpy(features), torch.from_numpy(image), seed=3, draws=50)
    numbers = []
    for row in np.random.default_rng(3).integers(12, size=(50, 12)):
        variances = np.linalg.eigvalsh(np.cov(np.concatenate([features[image == picture] for picture in row]).T))
        numbers.append(variances.sum() ** 2 / (variances**2).sum())
    assert np.allclose((found.low, found.high), np.quantile(numbers, [0.025, 0.975]))


def test_quarters_of_a_picture_stay_its_own():
    images = np.zeros((2, 448, 448, 3), dtype=np.uint8)
    images[1, :224, 224:] = 200
    tiles, image = quarter_tiles(images)
    assert image.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert tiles.float().mean(dim=(1, 2, 3)).tolist() == [0, 0, 0, 0, 0, 200, 0, 0]


def sources(count=6, dim=5):
    """Of two places: tiles that lie beside each other are alike, a change of stain moves along the last axis, half the scale is another offset."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name in ("a", "b"):
        left = torch.randn(count, dim, generator=draw)
        stain = torch.tensor([0.0] * (dim - 1) + [30.0])
        offset = torch.tensor([20.0] + [0.0] * (dim - 1))
        found[name] = SourceFeatures(left, left + 0.01, left + stain, left + offset)
    return found


def test_a_source_is_measured_by_what_the_others_taught():
    found = sources()
    plain = measure_source(found, "b", seed=0)
    assert plain["beside"]["mean"] == plain["scale probe"]["mean"] == 1
    assert plain["stain"]["mean"] < 0.6
    remove = fit_stain_removal([found["a"]], count=1)
    assert measure_source({name: part.apply(remove) for name, part in found.items()}, "b", seed=0)["stain"]["mean"] == 1


def test_an_organ_is_measured_by_what_the_other_taught():
    cancer = torch.tensor([0, 1, 1]).repeat_interleave(4)
    middles = torch.eye(3)[cancer]
    known = OrganFeatures(middles, torch.arange(3).repeat_interleave(4), cancer)
    tested = OrganFeatures(middles.clone(), known.picture, cancer)
    tested.tiles[4:8] = torch.eye(3)[0]  # one of two pictures of cancer looks like the other class
    found = measure_organ(known, tested, seed=0)
    assert {key: value["mean"] for key, value in found.items()} == {"knn": 0.75, "probe": 0.75, "order": 0.75}
    assert (found["order"]["low"], found["order"]["high"]) == (0.5, 1)


def test_the_order_of_an_organ_is_the_area_under_its_curve():
    draw = torch.Generator().manual_seed(0)
    cancer = torch.tensor([0, 1, 0, 1, 1, 0]).repeat_interleave(4)
    known, tested = (
        OrganFeatures(torch.randn(24, 2, generator=draw) + cancer[:, None], torch.arange(6).repeat_interleave(4), cancer) for _ in range(2)
    )
    probe = fit_probe(known.tiles, torch.ones(1, 24), cancer, 2)[0]
    scores = tested.tiles @ (probe[:-1, 1] - probe[:-1, 0])
    assert np.isclose(measure_organ(known, tested, seed=0)["order"]["mean"], roc_auc_score(cancer, scores))


def test_the_benchmark_of_sources_runs_on_made_pictures(tmp_path, capsys):
    draw = np.random.default_rng(0)
    names = [f"pool/{number:05d}_{source}.png" for number, source in enumerate(2 * ("cmu", "tcga", "ost", "dsb"))]
    names += [f"validation/{name}___{number}.png" for name in ("colon_n", "colon_aca", "lung_n", "lung_scc") for number in range(2)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((512, 512)).save((tmp_path / name).with_suffix(".jpg"))
    found = main(["--encoders", "benchmarks.encoders:mean_rgb", "--options", "--data", str(tmp_path), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    assert len(found) == 6 * (4 + len(OPTIONS)) + 4 * 4
    assert {row["left out"] for row in found} == {"cmu", "tcga", "ost", "dsb", "colon", "lung"}
