"""A context learns what neighbours tell, says when they tell nothing, and is the same each time."""

import json

import numpy as np
import pytest

from tests.support.fields import BOUND, board, noise, write_fields
from tilestream.encoders.contexts.context_file import read_context_about
from tilestream.errors import ConfigError, InputError
from tilestream.fitting.fit import fit

SMALL = {"window": 4, "width": 16, "heads": 4, "depth": 2, "passes": 2}


def fit_masked(embeddings, to, masked=SMALL, **sections):
    return fit(
        {
            "embeddings": embeddings, "target": {"masked": masked}, "split": {"folds": 4}, "save": str(to / "context.safetensors"), "device": "cpu",
            **sections,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("boards"), [board(seed) for seed in range(8)])


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("noises"), [noise(seed) for seed in range(6)])


@pytest.mark.slow
def test_what_neighbours_determine_is_told_up_to_the_noise(boards, tmp_path):
    told = fit_masked(boards, tmp_path, {**SMALL, "passes": 30, "learning_rate": 0.01}).told
    assert BOUND - 0.07 < told.r2["context"].value < BOUND + 0.02
    assert told.better
    assert told.r2["nearest"].value < 0  # it has the other sign
    assert told.gain["shuffled_in_windows"].low > 0.3
    assert told.gain["shuffled_in_blocks"].low > 0.3


def test_shuffled_places_cost_where_places_matter(boards, tmp_path):
    found = fit_masked(boards, tmp_path, {**SMALL, "passes": 3, "learning_rate": 0.01})
    assert found.told.gain["shuffled_in_blocks"].low > 0
    assert any("With tokens shuffled it does worse" in line for line in found.lines)


def test_of_noise_it_says_that_it_is_not_better(noises, tmp_path):
    found = fit_masked(noises, tmp_path)
    assert "mean" in found.told.failing
    words = "This context is not better than its baselines"
    assert any(line.startswith(words) and line.endswith("Do not use it.") for line in found.lines)
    assert words in found.report.read_text()
    assert words in json.loads(found.metrics.read_text())["metrics"]["verdict"]
    about = read_context_about(found.context)
    assert any(note.startswith(words) for note in about.notes)
    assert about.metrics["better_than_baselines"] is False


def test_the_same_config_gives_the_same_bytes(noises, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(fit_masked(noises, tmp_path / name).context.read_bytes())
    assert files[0] == files[1]


def test_little_memory_reads_again_and_judges_the_same_tokens(noises, tmp_path):
    (tmp_path / "little").mkdir()
    much = fit_masked(noises, tmp_path)
    little = fit_masked(noises, tmp_path / "little", memory_limit=20_000)
    assert little.told.tokens == much.told.tokens
    assert little.told.r2["window_mean"].value == pytest.approx(much.told.r2["window_mean"].value, abs=1e-6)


def test_the_header_says_what_it_was_fitted_on(noises, tmp_path):
    about = read_context_about(fit_masked(noises, tmp_path).context)
    assert (about.dim, about.window, about.width, about.depth) == (4, 4, 16, 2)
    assert about.trained_on["tokens"] == 4 * 256
    assert sorted([*about.trained_on["slides"], *about.trained_on["held_out"]]) == [f"s{i}" for i in range(6)]
    assert set(about.metrics["r2"]) >= {"context", "window_mean", "nearest", "ridge", "shuffled_in_windows"}


def test_labels_judge_and_teach_nothing(tmp_path):
    halves = [np.concatenate([noise(seed)[:, :8], noise(seed)[:, 8:] + 3], axis=1) for seed in range(6)]
    embeddings = write_fields(tmp_path / "out", halves)
    (tmp_path / "drawn").mkdir()
    for i in range(6):
        features = [
            {"type": "Feature", "properties": {"classification": {"name": name}}, "geometry": {"type": "Polygon", "coordinates": [[
                [x * 1792, 0], [(x + 1) * 1792, 0], [(x + 1) * 1792, 3584], [x * 1792, 3584], [x * 1792, 0]]]}}
            for x, name in enumerate(("left", "right"))
        ]  # fmt: skip
        (tmp_path / "drawn" / f"s{i}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    plain = fit_masked(embeddings, tmp_path)
    bytes_without = plain.context.read_bytes()
    found = fit_masked(embeddings, tmp_path, target={"masked": SMALL, "annotations": str(tmp_path / "drawn")})
    assert found.judged.neighbours["x"]["border_over_one_class"] > 1.2
    assert found.judged.probes["x"]["balanced_accuracy"] > 0.95
    assert set(found.judged.probes) == {"x", "context", "x_and_context"}
    weights = [raw[8 + int.from_bytes(raw[:8], "little") :] for raw in (bytes_without, found.context.read_bytes())]
    assert weights[0] == weights[1]


def test_what_cannot_be_fitted_is_refused(noises, tmp_path):
    with pytest.raises(ConfigError, match=r"target.masked.heads: 3 does not divide the 16 features"):
        fit_masked(noises, tmp_path, {**SMALL, "heads": 3})
    one = write_fields(tmp_path / "one", [noise(0)])
    with pytest.raises(InputError, match="judged on slides that it has not seen"):
        fit_masked(one, tmp_path)
    write_fields(tmp_path / "mixed", [noise(0), noise(1)])
    write_fields(tmp_path / "other" / "x", [noise(2)], mpp=0.5)
    (tmp_path / "other" / "x" / "s0.zarr").rename(tmp_path / "mixed" / "t.zarr")
    with pytest.raises(InputError, match=r"µm/px 0.25 and 0.5"):
        fit_masked(str(tmp_path / "mixed"), tmp_path)
    (tmp_path / "context.html").write_text("mine")
    with pytest.raises(ConfigError, match="no fit has written it"):
        fit_masked(noises, tmp_path)


def test_a_config_takes_a_head_or_masked(noises, tmp_path):
    head = {"name": "kind", "kind": "slide", "model": "mean"}
    with pytest.raises(ConfigError, match=r"target\.masked trains a context and no head"):
        fit_masked(noises, tmp_path, head=head)
    with pytest.raises(ConfigError, match=r"head.*missing"):
        fit({"embeddings": noises, "target": {"obs": "kind"}, "save": str(tmp_path / "a.safetensors")})
