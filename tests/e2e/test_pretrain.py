"""The pretraining learns, is seeded, continues, and writes weights that the package reads; the benchmark's classifiers classify."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from benchmarks.bench_encoder_quality import main
from benchmarks.pretrain.chunks import find_chunks, halve_chunks
from benchmarks.pretrain.colour import ColourConfig, Recolour, jitter_stain
from benchmarks.pretrain.geometry import ViewConfig, cut_crops, draw_crops
from benchmarks.pretrain.losses import covariance_loss, token_spread, variance_loss
from benchmarks.pretrain.methods import MethodConfig
from benchmarks.pretrain.network import Backbone, resample_positions
from benchmarks.pretrain.train import CollapseError, Run, TrainConfig, Trainer
from benchmarks.probing import bootstrap_accuracy, cross_validate, fit_probe, knn_predict, probe_predict, stratified_folds
from benchmarks.tile_features import cut_tiles
from tilestream.encoders.weights import apply_weights, load_weights
from tilestream.models.vit import VisionTransformer
from tilestream.models.vit_config import ViTConfig

CONFIG = TrainConfig(
    batch=8,
    lr=3e-3,
    log_steps=1,
    views=ViewConfig(global_px=32, local_px=16, local_views=2),
    losses=MethodConfig(width=32),
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_vit(seed: int = 0) -> VisionTransformer:
    return VisionTransformer(ViTConfig(dim=16, depth=1, heads=2, patch=8, img_size=32, position="sincos", seed=seed))


def made_chunks() -> torch.Tensor:
    coarse = torch.rand((8, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (64, 64), mode="bilinear") * 255).round().to(torch.uint8)


def made_trainer(**changes) -> Trainer:
    return Trainer(tiny_vit(), made_chunks(), replace(CONFIG, **changes))


def losses_of(trainer: Trainer, steps: int) -> list[float]:
    return [float(trainer.step(i / 20)["loss"]) for i in range(steps)]


def test_a_seed_gives_the_same_losses_and_another_seed_others():
    first = losses_of(made_trainer(), 2)
    assert first == losses_of(made_trainer(), 2)
    assert first != losses_of(made_trainer(seed=1), 2)


def test_steps_change_every_trained_weight_and_no_position():
    trainer = made_trainer()
    before = {key: value.clone() for key, value in trainer.method.student.named_parameters()}
    for _ in range(2):
        trainer.step(0.5)
    same = {key for key, value in trainer.method.student.named_parameters() if torch.equal(value, before[key])}
    assert same == {"backbone.vit.pos_embed"}


def test_training_lowers_the_loss():
    faint = ColourConfig(0.05, 0, 0.05, 0.05, 0.05, 0, grey=0, sharpness=0, noise=0, jpeg=0)
    trainer = made_trainer(warmup=0.01, colour=faint)
    losses = [float(trainer.step(0.1)["loss"]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_a_checkpoint_continues_as_if_never_stopped(tmp_path):
    trainer = made_trainer()
    trainer.step(0.1)
    torch.save(trainer.state(), tmp_path / "state.pt")
    expected = [float(trainer.step(0.2)["loss"]), float(trainer.step(0.3)["loss"])]
    other = made_trainer()
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    other.warm_up()
    assert [float(other.step(0.2)["loss"]), float(other.step(0.3)["loss"])] == expected


def test_a_checkpoint_of_another_config_is_refused():
    with pytest.raises(ValueError, match="another lr"):
        made_trainer(lr=1.0).load_state(made_trainer().state())


def test_a_run_writes_weights_that_load_strictly_and_a_log(tmp_path):
    trainer = made_trainer()
    Run(trainer, tmp_path, minutes=60, max_steps=3, facts={"device": "cpu"}).run()
    model = tiny_vit(seed=1)
    state = load_weights(tmp_path / "encoder.safetensors")
    apply_weights(model, state, tmp_path / "encoder.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert torch.equal(model.cls_token, trainer.method.teacher["backbone"].vit.cls_token.half().float())
    log = json.loads((tmp_path / "log.json").read_text())
    assert [row["step"] for row in log["rows"]] == [1, 2, 3]
    assert (log["device"], log["config"]["seed"], log["steps"]) == ("cpu", 0, 3)


def test_a_resumed_run_counts_earlier_time_and_steps(tmp_path):
    Run(made_trainer(), tmp_path, minutes=60, max_steps=2).run()
    run = Run(made_trainer(), tmp_path, minutes=60, max_steps=4)
    assert run.resume()
    spent = run.elapsed
    run.run()
    assert run.trainer.steps == 4
    assert run.seconds() > spent > 0
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4]


def test_a_run_ends_when_its_time_is_over(tmp_path):
    now = iter(range(10_000))
    run = Run(made_trainer(), tmp_path, minutes=0.5, clock=lambda: float(next(now)))
    run.run()
    assert 1 <= run.trainer.steps <= 30
    assert run.progress >= 1


def test_a_collapse_that_lasts_ends_the_run():
    trainer = made_trainer()
    for progress in (0.0, 0.1, 0.3, 0.4):
        trainer.check_collapse({"spread": 0.0}, progress)
    with pytest.raises(CollapseError, match="three rows long"):
        trainer.check_collapse({"spread": 0.0}, 0.5)


def test_a_loss_that_is_no_number_ends_the_run():
    with pytest.raises(CollapseError, match="nan"):
        made_trainer().check_collapse({"loss": float("nan"), "spread": 0.5}, 0.0)


def test_the_backbone_gives_the_features_of_the_package():
    vit = tiny_vit()
    pixels = torch.randn(2, 3, 32, 32)
    expected = vit.forward_features(pixels)
    first, patches = Backbone(vit, (4, 2))(pixels)
    assert torch.equal(torch.cat([first[:, None], patches], dim=1), expected)


def test_positions_of_fewer_patches_keep_the_class_tokens_and_the_order():
    table = resample_positions(tiny_vit(), 2)
    own = tiny_vit().pos_embed
    assert table.shape == (1, 5, 16)
    assert torch.equal(table[:, :1], own[:, :1])
    near = F.cosine_similarity(table[0, 1:, None], own[0, None, 1:], dim=-1).argmax(dim=1)
    assert [(int(i) // 4 >= 2, int(i) % 4 >= 2) for i in near] == [(False, False), (False, True), (True, False), (True, True)]


def test_a_crop_without_change_is_the_chunk_itself():
    chunks = made_chunks().float() / 255
    whole = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).expand(8, 1, 2, 3)
    torch.testing.assert_close(cut_crops(chunks, whole, 64)[:, 0], chunks, rtol=0, atol=1e-5)


def test_crops_that_fit_lie_inside_their_chunk():
    config = ViewConfig(global_px=32, local_px=16)
    for maps in draw_crops(200, 256, config, torch.Generator().manual_seed(0)):
        half = maps[..., :2].square().sum(dim=-2).sqrt()[..., 0]
        assert (maps[..., 2].abs().amax(dim=-1) + half <= 1 + 1e-5).all()


def test_stains_left_alone_leave_pixels_alone():
    pictures = made_chunks().float().clamp_min(1) / 255
    recolour = Recolour(ColourConfig())
    same = jitter_stain(pictures, *recolour.stain_change(torch.ones(8, 3), torch.zeros(8, 3)))
    torch.testing.assert_close(same, pictures, rtol=0, atol=1e-4)


def test_losses_of_jpeg_are_those_of_a_real_one():
    smooth = F.interpolate(made_chunks()[:1, :, ::16, ::16].float(), (32, 32), mode="bicubic").clamp(0, 255).round()
    file = io.BytesIO()
    Image.fromarray(smooth[0].permute(1, 2, 0).byte().numpy()).save(file, "JPEG", quality=50, subsampling=0)
    with Image.open(file) as picture:
        real = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    ours = Recolour(ColourConfig()).lose_as_jpeg(smooth / 255, torch.ones(1))[0] * 255
    assert (ours - real).abs().mean() < 0.5 * (smooth[0] - real).abs().mean()


def test_changed_pictures_stay_pictures():
    recolour = Recolour(ColourConfig())
    generator = torch.Generator().manual_seed(0)
    pictures = made_chunks().float() / 255
    changed = recolour(pictures, recolour.draw(8, generator), torch.randn(pictures.shape, generator=generator))
    assert changed.shape == pictures.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.allclose(changed, pictures, atol=0.1)


def test_vicreg_terms_of_known_embeddings():
    drawn = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(0))
    assert variance_loss(2 * drawn) == 0
    assert variance_loss(0 * drawn) == pytest.approx(0.99)
    assert covariance_loss(drawn) < 0.01
    assert covariance_loss(drawn[..., :1].expand(-1, -1, 3)) == pytest.approx(2.0, rel=0.2)


def test_spread_tells_a_collapse():
    assert token_spread(torch.ones(5, 4)) == pytest.approx(0, abs=1e-6)
    assert token_spread(torch.eye(4)) == pytest.approx(0.75)


def test_chunks_of_excluded_sources_are_left_out(tmp_path):
    for name in ("0_ost.jpg", "1_ost-2.jpg", "2_tcga.jpg"):
        (tmp_path / name).touch()
    assert [p.name for p in find_chunks(tmp_path)] == ["2_tcga.jpg"]
    with pytest.raises(FileNotFoundError, match="Set --data"):
        find_chunks(tmp_path, ("ost", "ost-2", "tcga"))


def test_halved_chunks_are_means():
    chunks = torch.tensor([[0, 100], [0, 100]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert halve_chunks(chunks).tolist() == [[[[50]]] * 3]


def separable(images: int = 20, tiles: int = 3):
    """Features of two classes, by image, that lie far apart."""
    generator = torch.Generator().manual_seed(0)
    classes = np.arange(images) % 2
    image = torch.arange(images).repeat_interleave(tiles)
    labels = torch.from_numpy(classes)[image]
    features = torch.randn(len(image), 6, generator=generator) * 0.3
    features[:, 0] += 4.0 * labels - 2
    return features, labels, image, classes


def test_neighbours_and_probe_classify_what_is_separable():
    features, labels, image, classes = separable()
    assert torch.equal(knn_predict(features, labels, features, 5, 2), labels)
    coefficients = fit_probe(features, torch.ones(1, len(labels)), labels, 2)
    assert torch.equal(probe_predict(coefficients, features)[0], labels)
    right = cross_validate(features, labels, image, stratified_folds(classes, 5, 2, 0))
    assert all((value == 1).all() for value in right.values())


def test_tiles_of_an_image_never_vouch_for_one_another():
    """Features that name the image alone say nothing of the class of another image."""
    _, labels, image, classes = separable()
    features = F.one_hot(image).float()
    right = cross_validate(features, labels, image, stratified_folds(classes, 5, 4, 0))
    assert all(value.mean() < 0.75 for value in right.values())


def test_the_probe_ignores_what_has_no_weight():
    features, labels, _, _ = separable()
    weights = torch.ones(1, len(labels))
    weights[:, :10] = 0
    spoilt = features.clone()
    spoilt[:10] = 50.0
    torch.testing.assert_close(fit_probe(spoilt, weights, labels, 2), fit_probe(features, weights, labels, 2), rtol=1e-2, atol=1e-2)


def test_folds_deal_every_class_evenly():
    classes = np.repeat([0, 1], 20)
    for repeat in stratified_folds(classes, 5, 3, 0):
        for label in (0, 1):
            assert np.bincount(repeat[classes == label]).tolist() == [4] * 5


def test_a_bootstrap_holds_the_mean():
    told = bootstrap_accuracy(np.array([0.0, 1.0] * 50), seed=0)
    assert told.low < told.mean == 0.5 < told.high
    assert told.high - told.low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_tiles_come_from_the_middle_and_keep_their_image():
    images = np.arange(2 * 500 * 500 * 3, dtype=np.uint64).reshape(2, 500, 500, 3).astype(np.uint8)
    tiles, image = cut_tiles(images)
    assert image.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(tiles[1].permute(1, 2, 0).numpy(), images[0, 26:250, 250:474])
    assert np.array_equal(cut_tiles(images, shift=1)[0][4].permute(1, 2, 0).numpy(), images[1, 27:251, 27:251])


@pytest.mark.slow
def test_the_benchmark_of_quality_runs_on_made_images(tmp_path, capsys):
    drawn = np.random.default_rng(0)
    for name in ("colon_a", "colon_b"):
        for i in range(2):
            Image.fromarray(drawn.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / f"{name}___{i}.png")
    found = main(["--data", str(tmp_path), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    assert {row["task"] for row in found["accuracy"]} == {"all", "colon"}
    unmoved = {(row["features"], row["change"]): row["cosine"] for row in found["robustness"]}
    assert unmoved["colour histogram", "mirrored"] == pytest.approx(1)
    assert unmoved["untrained class", "turned 90°"] > unmoved["colour histogram", "another image"]
