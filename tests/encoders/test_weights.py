"""Weights load strictly, from plain data only, and every damaged file is named."""

import json
import pickle
import struct

import pytest
import torch
from torch import nn

from tilestream.encoders.weights import apply_weights, load_weights, weights_digest
from tilestream.errors import ConfigError, InputError


def write_safetensors(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_safetensors_give_what_was_saved(tmp_path):
    saving = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    state = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.randn(2, 2).half(),
        "d": torch.randn(2).bfloat16(),
        "e": torch.tensor(1.5),
    }
    saving.save_file(state, tmp_path / "w.safetensors")
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


class Bomb:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(Bomb.target),)


def test_a_pickle_is_never_executed(tmp_path):
    Bomb.target = str(tmp_path / "executed")
    torch.save({"state_dict": Bomb()}, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth"):
        load_weights(tmp_path / "none.pth")


def test_weights_that_do_not_fit_are_refused_with_the_first_differences():
    module = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="weight"):
        apply_weights(module, {"bias": torch.zeros(2)}, "w.pth")
    with pytest.raises(ConfigError, match="extra"):
        apply_weights(module, {**module.state_dict(), "extra": torch.zeros(1)}, "w.pth")
    with pytest.raises(ConfigError, match="weight"):
        apply_weights(module, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "w.pth")


def test_the_digest_changes_with_any_weight():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(two)
    two.bias.data[0] += 1
    assert weights_digest(one) != weights_digest(two)
