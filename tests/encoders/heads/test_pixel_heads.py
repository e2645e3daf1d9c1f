"""Classifiers of pixels give what their own library gives, from folders and files as people have them."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.random_models import library, normalised, randomised, tissue
from tilestream.config.heads import Head
from tilestream.encoders.heads.load import load_head
from tilestream.errors import ConfigError, InputError

SIDE = 64
MEAN, STD = (0.7, 0.6, 0.65), (0.2, 0.25, 0.3)
NAMES = ["adipose", "mucus", "tumour"]


def load(model, **told):
    return load_head(Head(kind="classify", input="pixels", model=str(model), **told), "a")


def answers(loaded, tiles):
    with torch.inference_mode():
        return loaded.module(tiles)


def resnet(classes=3):
    return randomised(library("timm").create_model("test_resnet", pretrained=False, num_classes=classes))


def export(model, path, given, **metadata):
    """An ONNX file as torch writes it, any number of patches at once."""
    onnx = library("onnx")
    library("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (given,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n", min=1, max=512)},), verbose=False
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, str(path))


def wsinfer(folder, classes, **changes):
    config = {
        "spec_version": "1.0", "architecture": "test_resnet", "num_classes": len(classes), "class_names": list(classes), "patch_size_pixels": 96,
        "spacing_um_px": 0.25,
        "transform": [
            {"name": "Resize", "arguments": {"size": SIDE}}, {"name": "ToTensor", "arguments": {}},
            {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}},
        ], **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def through_zoo(tiles):
    """Patches as the zoo's transform makes them, by Pillow: resized, scaled and normalised."""
    small = [Image.fromarray(tile.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for tile in tiles]
    pixels = torch.from_numpy(np.stack([np.asarray(tile) for tile in small])).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_a_folder_of_timm(tmp_path):
    hub = library("timm").models
    theirs = resnet()
    hub.save_for_hf(theirs, tmp_path, model_config={"num_classes": 3, "label_names": NAMES}, safe_serialization=True)
    loaded = load(tmp_path)
    tiles = tissue(loaded.size)
    expected = theirs(normalised(tiles, theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"])).detach()
    assert (answers(loaded, tiles) - expected).abs().max() < 1e-5
    assert (loaded.classes, loaded.size) == (tuple(NAMES), theirs.pretrained_cfg["input_size"][-1])


def test_a_folder_of_transformers(tmp_path):
    transformers = library("transformers")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=SIDE, patch_size=16,
        id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    theirs = randomised(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        load(tmp_path)
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIDE, "width": SIDE}, "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(tmp_path)
    tiles = tissue(SIDE)
    assert (answers(loaded, tiles) - theirs(normalised(tiles, MEAN, STD)).logits.detach()).abs().max() < 1e-5
    assert (loaded.classes, loaded.size, loaded.task) == (tuple(NAMES), SIDE, "classification")
    theirs.config.problem_type = "multi_label_classification"
    theirs.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="gives several labels at once"):  # no softmax over what does not exclude each other
        load(tmp_path)


@pytest.mark.parametrize("classes", [["tumour"], NAMES])
def test_a_model_of_wsinfers_zoo_beside_safetensors(tmp_path, classes):
    theirs = resnet(len(classes))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    wsinfer(tmp_path, classes)
    loaded = load(tmp_path)
    tiles = tissue(96)
    assert (answers(loaded, tiles) - theirs(through_zoo(tiles)).detach()).abs().max() < 1e-5
    assert (loaded.size, loaded.mpp) == (96, 0.25)
    assert loaded.classes == (("not tumour", "tumour") if len(classes) == 1 else tuple(NAMES))


def test_onnx_gives_what_onnxruntime_and_torch_give(tmp_path):
    runtime = library("onnxruntime")
    theirs = resnet()
    tiles = tissue(96)
    pixels = through_zoo(tiles)
    export(theirs, tmp_path / "model.onnx", pixels)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    with pytest.raises(ConfigError, match="takes float32, and how pixels are normalised is not known"):
        load(tmp_path / "model.onnx")
    wsinfer(tmp_path, NAMES)
    loaded = load(tmp_path / "model.onnx")
    found = answers(loaded, tiles).numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - theirs(pixels).detach().numpy()).max() < 1e-4
    assert (loaded.size, loaded.mpp, loaded.classes) == (96, 0.25, tuple(NAMES))


def test_onnx_says_itself_how_pixels_are_normalised_or_takes_them_as_they_are(tmp_path):
    theirs = resnet()
    tiles = tissue(SIDE)
    told = {"classes": json.dumps(NAMES), "mean": json.dumps(MEAN), "std": json.dumps(STD), "mpp": "0.5"}
    export(theirs, tmp_path / "floats.onnx", normalised(tiles, MEAN, STD), **told)
    loaded = load(tmp_path / "floats.onnx")
    expected = theirs(normalised(tiles, MEAN, STD)).detach()
    assert (answers(loaded, tiles) - expected).abs().max() < 1e-4
    assert (loaded.classes, loaded.mpp) == (tuple(NAMES), 0.5)

    class Whole(torch.nn.Module):
        def forward(self, x):
            return x.float().mean(dim=(2, 3))

    export(Whole(), tmp_path / "pixels.onnx", tiles)
    loaded = load(tmp_path / "pixels.onnx", classes=NAMES)
    assert (answers(loaded, tiles) - tiles.float().mean(dim=(2, 3))).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 4}, "names 3 classes for num_classes 4"),
        (
            {"transform": [{"name": "ToTensor"}, {"name": "Resize", "arguments": {"size": 4}}]},
            "known are Resize, ToTensor, Normalize, in this order",
        ),
        ({"transform": [{"name": "Resize", "arguments": {"size": [4, 5]}}]}, "patches are squares"),
        ({"transform": [{"name": "Resize", "arguments": {"size": 4, "pad": 1}}]}, "Resize has the argument pad"),
        ({"transform": [{"name": "ColorJitter"}]}, "its transform is ColorJitter"),
        ({"architecture": None}, "does not say which network"),
    ],
)
def test_a_config_of_the_zoo_that_cannot_be_honoured_is_refused(tmp_path, changes, words):
    save_file(resnet().state_dict(), tmp_path / "model.safetensors")
    wsinfer(tmp_path, NAMES, **changes)
    with pytest.raises(ConfigError, match=words):
        load(tmp_path)


def test_a_program_and_a_folder_of_nobody_are_refused(tmp_path):
    wsinfer(tmp_path, NAMES)
    (tmp_path / "torchscript_model.pt").write_bytes(b"program")
    with pytest.raises(InputError, match="TorchScript program only"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"_made": "by nobody"}')
    with pytest.raises(ConfigError, match="of no library that is known here"):
        load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nothing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        load(tmp_path / "broken.onnx")
