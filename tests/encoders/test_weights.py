"""Weights load strictly, from plain data only, whatever they are wrapped in, and every damaged file is named."""

import argparse
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tilestream.encoders.catalogue import EncoderSpec
from tilestream.encoders.registry import build_encoder
from tilestream.encoders.weights import apply_weights, load_weights, read_weights, weights_digest
from tilestream.errors import ConfigError, InputError


def write_safetensors(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_safetensors_give_what_was_saved(tmp_path):
    state = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.randn(2, 2).half(),
        "d": torch.randn(2).bfloat16(),
        "e": torch.tensor(1.5),
    }
    save_file(state, tmp_path / "w.safetensors")
    seen = load_weights(tmp_path / "w.safetensors")
    assert seen.keys() == state.keys()
    assert all(torch.equal(seen[k], state[k]) and seen[k].dtype == state[k].dtype for k in state)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"[]", b""),
        ({"a": entry(0, 8)}, b"1234"),  # cut short
        ({"a": entry(0, 4)}, b"12345678"),  # shape needs 8 bytes
        ({"a": entry(-8, 0)}, b"12345678"),
        ({"a": entry(0, 8, dtype="X9")}, b"12345678"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789012"),  # overlap
        ({"a": {"dtype": "F32"}}, b""),
        ({"a": entry(0, 8, shape=(-1, -2))}, b"12345678"),
    ],
)
def test_damaged_safetensors_are_refused_by_name(tmp_path, header, data):
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_weights(write_safetensors(tmp_path / "w.safetensors", header, data))


@pytest.mark.parametrize("raw", [b"", b"abc", struct.pack("<Q", 2**62) + b"{}"])
def test_a_torn_header_is_refused(tmp_path, raw):
    (tmp_path / "w.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "old", "noise", "text"])
def test_whatever_is_damaged_in_a_checkpoint_it_is_refused_by_name(tmp_path, form):
    """Or read, where what was hit are numbers; nothing else comes out of torch's and zip's own parsers."""
    chance, path = np.random.default_rng(0), tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(3, 4)}, path, _use_new_zipfile_serialization=form == "zip")
    whole = (
        path.read_bytes()
        if form in ("zip", "old")
        else chance.bytes(60)
        if form == "noise"
        else b"version https://git-lfs.github.com/spec/v1\noid sha256"
    )
    damaged = [whole[:cut] for cut in range(0, len(whole), max(1, len(whole) // 40))]
    for _ in range(120):
        hit = bytearray(whole)
        for place in chance.integers(len(whole), size=3):
            hit[place] = chance.integers(256)
        damaged.append(bytes(hit))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        told = ""
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path)[0].values())
        except InputError as error:
            told = str(error)
        assert not told or "w.pth" in told
        refused += bool(told)
    assert refused > len(damaged) // 4


class Bomb:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(Bomb.target),)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pth.tar", ".bin"])
def test_a_pickle_is_never_executed(tmp_path, suffix):
    Bomb.target = str(tmp_path / "executed")
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "hyper_parameters": Bomb()}, tmp_path / f"w{suffix}")
    (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in (f"w{suffix}", f"plain{suffix}"):
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_program_is_never_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:  # what torch.jit.save writes, as far as names go
        archive.writestr("w/code/__torch__.py", "raise SystemExit")
        archive.writestr("w/data.pkl", b"")
    with pytest.raises(InputError, match=r"w\.pt: is a TorchScript program"):
        load_weights(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth"):
        load_weights(tmp_path / "none.pth")


def network():
    """A small network with drawn weights, of names that also occur deeper inside it."""
    drawn = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 2))
    with torch.no_grad():
        for value in drawn.parameters():
            value.normal_(generator=torch.Generator().manual_seed(len(value)))
    return drawn


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


WRAPPED = {
    "plain.pth": lambda s: s,
    "plain.pth.tar": lambda s: s,
    "parallel.pth": lambda s: under("module.", s),
    "parallel and lightning.ckpt": lambda s: {"state_dict": under("model.module.", s), "epoch": 3, "hparams": argparse.Namespace(lr=1.0)},
    "dino.pth": lambda s: {"student": under("module.backbone.", other(s)), "teacher": under("backbone.", s) | {"head.weight": torch.zeros(2)}, "epoch": 1},
    "dinov2.pth": lambda s: {"model": under("teacher.backbone.", s) | under("student.backbone.", other(s))},
    "trainer.pth": lambda s: {"model_state_dict": s, "optimizer": {"lr": 1.0}, "epoch": 3},
    "average.pth": lambda s: {"state_dict": other(s), "state_dict_ema": s},
    "average beside.pth": lambda s: {"state_dict": under("model_ema.", s) | under("model.", other(s))},
    "compiled.pth": lambda s: under("_orig_mod.", s),
    "compiled inside.pth": lambda s: {key.replace("1.", "1._orig_mod.", 1): value for key, value in under("net.", s).items()},
    "own.bin": lambda s: under("my_encoder.trunk.", s),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_in_what_people_wrap_them_in(tmp_path, name):
    wanted = network().state_dict()
    torch.save(WRAPPED[name](wanted), tmp_path / name)
    module = network()
    nn.init.zeros_(module[0].weight)
    state, notes = read_weights(tmp_path / name)
    notes += apply_weights(module, state, name)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in wanted.items())
    assert bool(notes) == (not name.startswith("plain"))


def test_what_was_taken_off_is_said_by_the_encoder(tmp_path):
    own = build_encoder(EncoderSpec("patch_embed", args={"dim": 4}))
    torch.save({"state_dict": under("module.embed.", own.state_dict()) | {"head.weight": torch.zeros(1)}}, tmp_path / "w.ckpt")
    ours = build_encoder(EncoderSpec("patch_embed", weights=str(tmp_path / "w.ckpt"), args={"dim": 4}))
    assert ours.notes == ["weights are state_dict of w.ckpt", "took 'module.embed.' off 2 names; left out 1 others (head)"]


def test_several_networks_alike_are_not_chosen_from(tmp_path):
    state = network().state_dict()
    with pytest.raises(ConfigError, match=r"encoder\.weights: w\.pth holds several networks alike \(key\., query\.\)"):
        apply_weights(network(), under("query.", state) | under("key.", state), "w.pth")


def shard(folder, state):
    """Two files with an index, as the hub has large models."""
    keys = sorted(state)
    names = {key: f"model-0000{1 + (n >= 3)}-of-00002.safetensors" for n, key in enumerate(keys)}
    for name in set(names.values()):
        save_file({key: state[key] for key in keys if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_shards_are_read_by_their_index_or_their_folder(tmp_path):
    state = network().state_dict()
    shard(tmp_path, state)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = load_weights(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"its shard model-00002-of-00002\.safetensors is not there"):
        load_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../w.safetensors"}}')
    with pytest.raises(InputError, match="shards lie beside their index"):
        load_weights(tmp_path)


def test_a_folder_gives_the_one_file_that_it_holds(tmp_path):
    state = network().state_dict()
    with pytest.raises(InputError, match="holds no weights"):
        load_weights(tmp_path)
    torch.save(other(state), tmp_path / "pytorch_model.bin")
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_weights(tmp_path)["0.weight"], state["0.weight"])
    save_file(state, tmp_path / "second.safetensors")
    with pytest.raises(InputError, match=r"holds 2 weights files \(model\.safetensors, second\.safetensors\)"):
        load_weights(tmp_path)


def test_weights_that_do_not_fit_are_refused_with_the_first_differences():
    module = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="weight"):
        apply_weights(module, {"bias": torch.zeros(2)}, "w.pth")
    with pytest.raises(ConfigError, match="extra"):
        apply_weights(module, {**module.state_dict(), "extra": torch.zeros(1)}, "w.pth")
    with pytest.raises(ConfigError, match="weight"):
        apply_weights(module, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "w.pth")
    with pytest.raises(ConfigError, match=r"1 hold no floats: weight is torch\.int8"):
        apply_weights(module, {"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}, "w.pth")


def test_the_digest_changes_with_any_weight():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(two)
    two.bias.data[0] += 1
    assert weights_digest(one) != weights_digest(two)
