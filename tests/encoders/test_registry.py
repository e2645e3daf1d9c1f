"""Encoders are found by name, and what does not fit the contract is refused with the config key that caused it."""

import io
import re
import sys
from dataclasses import asdict
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import nn

from tilestream.encoders import factories
from tilestream.encoders.catalogue import COLUMNS, NARROW, EncoderSpec, encoder_tables, known_encoders
from tilestream.encoders.registry import build_encoder, random_weights
from tilestream.encoders.slides.catalogue import all_tables, encoder_rows
from tilestream.errors import ConfigError, InputError
from tilestream.models.patch_embed import PatchEmbed


class Means(nn.Module):
    def __init__(self, dim=3, *, scale):
        super().__init__()
        self.dim = dim
        self.untrained = True
        self.linear = nn.Linear(3, 3)
        self.drop = nn.Dropout(scale)

    def forward(self, images):
        return images.float().mean(dim=(2, 3))


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("made_encoders")
    made.means = Means
    made.nothing = lambda: None
    made.wordy = lambda **options: Means(scale=0.5, **options)
    made.number = 3
    monkeypatch.setitem(sys.modules, "made_encoders", made)
    return made


def test_a_factory_is_called_with_its_arguments_and_frozen(module):
    encoder = build_encoder(EncoderSpec("made_encoders:means", args={"scale": 0.5}))
    assert isinstance(encoder, Means)
    assert not any(part.training for part in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert build_encoder(EncoderSpec("made_encoders:wordy", args={"dim": 5})).dim == 5


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("vit_smal_patch16_224", {}, r"encoder.name: 'vit_smal_patch16_224' is unknown. Did you mean vit_small_patch16_224\?"),
        ("qqq", {}, "encoder.name: 'qqq' is unknown. Known are tilestream-lite, "),
        ("no_such_module_here:make", {}, "encoder.name: the module of 'no_such_module_here:make' cannot be imported"),
        (":make", {}, "encoder.name: the module of ':make' cannot be imported"),
        ("made_encoders:mean", {}, r"encoder.name: made_encoders has no 'mean'. Did you mean made_encoders:means\?"),
        ("made_encoders:number", {}, "encoder.name: 'made_encoders:number' is a int"),
        ("made_encoders:nothing", {}, "encoder.name: 'made_encoders:nothing' returned a NoneType"),
        ("made_encoders:means", {"scale": 0, "dim": 0}, "dim = 0"),
        ("made_encoders:means", {"scale": 0, "dim": True}, "dim = True"),
        ("made_encoders:means", {"scal": 0}, r"encoder.args.scal: .* Did you mean scale\?"),
        ("made_encoders:means", {}, "encoder.args.scale: 'made_encoders:means' needs it"),
        ("patch_embed", {"registers": 4}, "encoder.args.registers: 'patch_embed' takes no such argument"),
        ("vit_tiny_patch16_224", {"register": 4}, r"encoder.args.register: .* Did you mean registers\?"),
        ("vit_tiny_patch16_224", {"heads": 4}, "encoder.args.heads"),
        ("vit_tiny_patch16_224", {"output": "cls"}, "encoder.args.output: 'cls', but it must be one of class, mean"),
        ("vit_tiny_patch16_224", {"class_token": False}, "encoder.args.output: 'class' needs a class token"),
        ("vit_tiny_patch16_224", {"img_size": 230}, "encoder.args.img_size: 230 is not a multiple of the patch, 16 px. Set it to 224"),
        ("vit_tiny_patch16_224", {"mean": 0.5}, "encoder.args.mean: 0.5, but it must be three numbers"),
        ("vit_tiny_patch16_224", {"std": [1, 1, 0]}, "encoder.args.std"),
        ("vit_tiny_patch16_224", {"registers": -1}, "encoder.args.registers: -1"),
        ("vit_tiny_patch16_224", {"layer_scale": "x"}, "encoder.args.layer_scale: 'x'"),
        ("vit_tiny_patch16_224", {"class_token": "no"}, "encoder.args.class_token: 'no'"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(module, name, args, words):
    with pytest.raises(ConfigError, match=words):
        build_encoder(EncoderSpec(name, args=args))


def test_installed_packages_bring_encoders_that_are_imported_only_when_asked_for(module, monkeypatch):
    points = [
        EntryPoint("means", "made_encoders:wordy", factories.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_module_here:make", factories.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(factories, "entry_points", lambda group: points)
    assert {"means", "broken"} <= {entry.name for entry in known_encoders()}
    assert isinstance(build_encoder(EncoderSpec("means")), Means)
    with pytest.raises(ConfigError, match=r"encoder.name: 'broken', which is no_such_module_here:make, cannot be imported"):
        build_encoder(EncoderSpec("broken"))


def test_the_table_says_what_the_small_encoders_are():
    entries = {entry.name: entry for entry in known_encoders()}
    for name in ("vit_tiny_patch16_224", "patch_embed"):
        encoder = build_encoder(EncoderSpec(name))
        assert (entries[name].dim, entries[name].tile_size, entries[name].mpp) == (encoder.dim, encoder.tile_size, encoder.mpp)


def test_weights_are_loaded_and_then_no_longer_random(module, tmp_path):
    ours, theirs = EncoderSpec("patch_embed", args={"dim": 8}), EncoderSpec("made_encoders:means", args={"scale": 0})
    encoder = build_encoder(ours)
    assert random_weights(ours, encoder)
    assert random_weights(theirs, build_encoder(theirs))
    other = PatchEmbed(dim=8, seed=1)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    loaded = EncoderSpec("patch_embed", weights=str(tmp_path / "w.pth"), args={"dim": 8})
    assert torch.equal(build_encoder(loaded).proj.weight, other.proj.weight)
    assert not random_weights(loaded, encoder)
    with pytest.raises(ConfigError, match=r"encoder.weights: .*w.pth does not fit the model. 2 shapes differ: proj.weight is"):
        build_encoder(EncoderSpec("patch_embed", weights=str(tmp_path / "w.pth"), args={"dim": 16}))
    with pytest.raises(InputError, match="there is no such weights file"):
        build_encoder(EncoderSpec("patch_embed", weights=str(tmp_path / "none.pth")))


@pytest.mark.parametrize(("width", "columns"), [(80, NARROW), (200, tuple(COLUMNS))])
def test_the_tables_of_encoders_break_no_word_of_their_names(width, columns):
    console = Console(width=width, file=io.StringIO())
    rows = [asdict(entry) for entry in known_encoders()]
    console.print(*encoder_tables(rows, width), sep="\n")
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    heads = [line for line in lines if line.startswith(f"{COLUMNS['name']} ")]
    assert heads
    assert all(re.split(r"  +", head.strip()) == [COLUMNS[key] for key in columns] for head in heads)
    assert {row["name"] for row in rows} <= {line.split(" ")[0] for line in lines}


@pytest.mark.parametrize("width", [80, 200])
def test_slide_encoders_are_listed_with_licence_gate_and_what_they_were_trained_on(width):
    console = Console(width=width, file=io.StringIO())
    console.print(*all_tables(width), sep="\n\n")
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    slides = [row for row in encoder_rows() if row["kind"] == "slide"]
    assert {row["name"] for row in slides} <= {line.split(" ")[0] for line in lines}
    assert all(row["licence"] and row["trained"] and row["gated"] in (True, False) and row["places"] for row in slides)
    known = {row["name"] for row in encoder_rows() if row["kind"] == "tile"}
    assert {row["tile_encoder"] for row in slides} <= known
    (gigapath,) = (row for row in slides if row["name"] == "gigapath")
    assert (gigapath["tile_encoder"], gigapath["tile_size"], gigapath["mpp"], gigapath["inputs"], gigapath["dim"]) == (
        "gigapath",
        256,
        0.5,
        1536,
        768,
    )
    assert gigapath["places"] == "cells of 256 px at 0.5 µm/px from level-0 (0, 0), 0 to 999 a side"
