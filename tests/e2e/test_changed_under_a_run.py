"""Files that change while a run goes on, or between two tries of it: no store holds rows of both."""

import importlib
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tilestream
from tests.support.heads import head_file
from tests.support.images import make_image, write_pyramid
from tests.support.resuming import dask_workers, start, wait_for_shard, write_config
from tests.support.runs import CORNERS, bytes_of, config, opened
from tilestream.encoders.weights import module_digest, weights_digest
from tilestream.errors import ConfigError, InputError, OutputError, UnfitWorkerError
from tilestream.models.context import ContextTransformer
from tilestream.models.pooling import make_pool
from tilestream.runner.reporter import Reporter

CONTEXT = {"window": 4, "depth": 2, "heads": 3}


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.setenv("TILESTREAM_TEST_GAIN", str(tmp_path / "gain"))
    (tmp_path / "gain").write_text("2")
    return write_pyramid(tmp_path / "a.tif", make_image(500, 500, 1), compression="deflate", levels=1, mpp=0.5)


class Then(Reporter):
    """Does something once the first shard is done, or the last."""

    def __init__(self, act, shards=1):
        self.act, self.shards = act, shards

    def shard_done(self, report):
        self.shards -= 1
        if self.shards == 0:
            self.act()


def stop():
    raise KeyboardInterrupt


def given(image, folder, **sections):
    return config(image, folder / "out", **{**CORNERS, **sections})


@pytest.mark.parametrize("kept", ["weight", "buffer", "number"])
def test_what_a_factory_loads_is_known_by_what_came_of_it(image, tmp_path, kept):
    settings = given(image, tmp_path, encoder={"name": "tests.support.encoders:told_corners", "args": {"kept": kept}})
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(settings, reporter=Then(stop))
    (tmp_path / "gain").write_text("3")
    with pytest.raises(OutputError, match=r"encoder\.weights_sha256 was '[0-9a-f]{64}' and is now '[0-9a-f]{64}'"):
        tilestream.run(settings)
    (tmp_path / "gain").write_text("2.0")
    tilestream.run(settings)
    rows = np.array(opened(tmp_path / "out", "a").embeddings[:])
    tilestream.run(given(image, tmp_path / "plain"))
    np.testing.assert_array_equal(rows, 2 * opened(tmp_path / "plain" / "out", "a").embeddings[:])


def test_modules_of_the_same_weights_differ_by_the_numbers_they_hold():
    def made(**held):
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
        torch.nn.init.ones_(module[0].weight)
        torch.nn.init.zeros_(module[0].bias)
        own = type("Own", (torch.nn.Module,), {"dim": 2})()
        own.body = module
        for name, value in held.items():
            setattr(own, name, value)
        return own

    plain = made()
    assert module_digest(plain) == weights_digest(plain) == module_digest(made(name="a text", dim=2, notes=("a",), mpp=0.5))
    others = [made(), made(a=1), made(a=1.0), made(a=True), made(b=1), made(a=[1, 2]), made(a=[2, 1]), made(a={"k": 1}), made(a=np.ones(2)), made(a=torch.ones(2)),
              made(a=np.ones(2, np.float32)), made(a=[torch.nn.Linear(1, 1)])]  # fmt: skip
    assert len({module_digest(module) for module in others}) == len(others)


@pytest.mark.parametrize("hold", [lambda whole: [whole], lambda whole: {"whole": (whole,)}], ids=["list", "dict"])
@pytest.mark.parametrize("whose", [lambda whole: whole, lambda whole: whole.body], ids=["whole", "part"])
def test_a_module_that_refers_to_itself_is_known_by_its_numbers(hold, whose):
    def made(number):
        whole = type("Own", (torch.nn.Module,), {"dim": 2})()
        whole.body = type("Body", (torch.nn.Module,), {})()
        whole.number = number
        whose(whole).held = hold(whole)
        return whole

    assert module_digest(made(1)) == module_digest(made(1)) != module_digest(made(2))


def test_a_list_that_holds_itself_is_known_by_its_numbers():
    whole = type("Own", (torch.nn.Module,), {"dim": 2})()
    whole.held = [1]
    before = module_digest(whole)
    whole.held.append(whole.held)
    assert module_digest(whole) == before


@pytest.mark.parametrize(("change", "refused"), [("# a remark\n\n{}", False), ("{}\nADDED = 1\n", True)])
def test_rows_of_other_code_are_not_added_to_a_slide_that_was_begun(image, tmp_path, monkeypatch, change, refused):
    code = tmp_path / "code"
    code.mkdir()
    text = "from tests.support.encoders import corners\n"
    (code / f"mine{refused}.py").write_text(text)
    monkeypatch.syspath_prepend(str(code))
    settings = given(image, tmp_path, encoder=f"mine{refused}:corners")
    with pytest.raises(KeyboardInterrupt):
        tilestream.run(settings, reporter=Then(stop))
    (code / f"mine{refused}.py").write_text(change.format(text))
    if refused:
        with pytest.raises(
            OutputError, match=r"mineTrue.py of mineTrue:corners holds other code than when rows of .* were made. Put the file back"
        ):
            tilestream.run(settings)
        (code / f"mine{refused}.py").write_text(text)
    assert tilestream.run(settings).exit_code == 0


def times(gain):
    """An encoder without weights: only its code tells one from another."""
    lines = ["from tests.support.encoders import corners", "def made():", "    module = corners()", "    plain = module.forward",
             f"    module.forward = lambda x: {gain} * plain(x)", "    return module"]  # fmt: skip
    return "\n".join(lines)


def module_of(tmp_path, monkeypatch, name):
    """A module of the user's, whose encoder and head are `made`; and what writes another into its file, as a process that starts then would find it."""
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.syspath_prepend(str(code))

    def write(text):
        (code / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    return write


@pytest.mark.parametrize("more", ["nothing", "slide", "pool", "head", "retry"])
def test_rows_of_a_finished_slide_are_not_taken_for_those_of_other_code(image, tmp_path, monkeypatch, more):
    write = module_of(tmp_path, monkeypatch, f"own_{more}")
    write(times(1))
    name = f"own_{more}:made"
    tilestream.run(given(image, tmp_path, encoder=name))
    before = bytes_of(tmp_path / "out")
    write(times(3))
    second = write_pyramid(tmp_path / "b.tif", make_image(500, 500, 2), compression="deflate", levels=1, mpp=0.5)
    head, _ = head_file(tmp_path / "h.safetensors")
    own = {"pool": {"pool": "max"}, "head": {"heads": {"h": {"kind": "classify", "model": head}}}}.get(more, {})
    slides = {"slides": [str(image), str(second)]} if more == "slide" else {}
    settings = given(image, tmp_path, encoder=name, **own) | slides
    with pytest.raises(
        OutputError, match=rf"a: .*own_{more}\.py of {name} holds other code .* start the slide over with --restart"
    ) as refused:
        tilestream.run(settings, retry_failed=more == "retry")
    assert refused.value.exit_code == 6
    assert bytes_of(tmp_path / "out") == before
    write(times(1))
    assert tilestream.run(settings).exit_code == 0
    write(times(3))
    assert tilestream.run(settings, restart=True).exit_code == 0
    rows = opened(tmp_path / "out", "a").embeddings[:]
    tilestream.run(given(image, tmp_path / "plain"))
    np.testing.assert_array_equal(rows, 3 * opened(tmp_path / "plain" / "out", "a").embeddings[:])


def test_answers_of_a_head_are_not_taken_for_those_of_other_code(image, tmp_path, monkeypatch):
    write = module_of(tmp_path, monkeypatch, "own_answers")
    write("from tests.support.heads import WholeBag as made\n")
    settings = given(image, tmp_path, heads={"bag": {"kind": "slide", "model": "own_answers:made"}})
    tilestream.run(settings)
    before = bytes_of(tmp_path / "out")
    assert tilestream.run(settings).exit_code == 0
    write("from tests.support.heads import PlacedBag as made\n")
    with pytest.raises(OutputError, match=r"another head bag: heads\.bag\.model_code_sha256 was .* --restart heads:bag"):
        tilestream.run(settings)
    assert bytes_of(tmp_path / "out") == before
    assert tilestream.run(settings, restart="heads:bag").new_tiles == 0
    tilestream.run(given(image, tmp_path / "plain", heads={"bag": {"kind": "slide", "model": "tests.support.heads:placed_bag"}}))
    one, other = (bytes_of(folder / "out" / "a.zarr" / "tables" / "slide") for folder in (tmp_path, tmp_path / "plain"))
    assert one == other


def weights(path, module):
    save_file({name: value + torch.rand(()) + 0.1 for name, value in module.state_dict().items()}, path)


@pytest.mark.parametrize("field", ["context.weights", "pool.weights", "windows.weights"])
def test_weights_of_a_later_stage_that_change_under_a_run_are_refused_where_they_are_loaded(image, tmp_path, field):
    section, file = field.partition(".")[0], tmp_path / "w.safetensors"
    module = ContextTransformer(dim=12, depth=2, heads=3, window=4) if section == "context" else make_pool("gated_attention", 12, None)
    weights(file, module)
    own = {
        "context": {"context": {**CONTEXT, "weights": str(file), "schedule": "halo_shards"}},
        "pool": {"pool": {"name": "gated_attention", "weights": str(file)}},
        "windows": {"output": {"save": ["tiles", "windows"]}, "windows": {"pool": "gated_attention", "weights": str(file), "sides": [2]}, "pool": "none"},
    }[section]  # fmt: skip
    settings = given(image, tmp_path, **own)
    before = file.read_bytes()

    def change():
        weights(file, module)

    with pytest.raises(UnfitWorkerError, match=rf"{field}: .*w\.safetensors holds other bytes there, or by now, than when the run began"):
        tilestream.run(settings, reporter=Then(change, 4))
    assert opened_arrays(tmp_path) == {"tiles"}
    file.write_bytes(before)
    assert tilestream.run(settings).exit_code == 0


def opened_arrays(folder):
    """The stages that anything is committed of."""
    names = {path.name.rpartition("-")[0] for path in (folder / "out" / "a.zarr" / ".tilestream" / "shards").iterdir()}
    return names - {"picture"}


@pytest.mark.parametrize("kind", ["mask", "weights"])
def test_a_file_that_changes_between_its_digest_and_its_use_is_refused(image, tmp_path, monkeypatch, kind):
    from PIL import Image

    from tilestream.runner import prepare

    mask, file = tmp_path / "m.png", tmp_path / "w.safetensors"
    Image.fromarray(np.full((50, 50), 255, np.uint8)).save(mask)
    where, name = (prepare, "prepare_slide") if kind == "mask" else (prepare, "check_encoder")
    real = getattr(where, name)

    def late(*arguments, **named):
        if kind == "mask":
            Image.fromarray(np.tile(np.array([0, 255], np.uint8), (50, 25))).save(mask)
        made = real(*arguments, **named)
        if kind == "weights":
            weights(file, ContextTransformer(dim=12, depth=2, heads=3, window=4))
        return made

    monkeypatch.setattr(where, name, late)
    if kind == "mask":
        summary = tilestream.run(given(image, tmp_path, tiles={"size": 64, "level": 0, "tissue": {"mask": str(mask)}}))
        assert "m.png (tiles.tissue.mask) changed while it was read" in summary.slides[0].error
        assert not (tmp_path / "out" / "a.zarr").exists()
    else:
        weights(file, ContextTransformer(dim=12, depth=2, heads=3, window=4))
        with pytest.raises(InputError, match=r"w\.safetensors \(context\.weights\) changed while it was read"):
            tilestream.run(given(image, tmp_path, context={**CONTEXT, "weights": str(file)}))


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["weight", "number"])
def test_workers_that_are_replaced_after_their_factorys_file_was_are_refused_by_name(tmp_path, monkeypatch, kept):
    image = write_pyramid(tmp_path / "a.tif", make_image(1200, 1100, 5), tile=128, levels=1)
    gain = tmp_path / "gain"
    monkeypatch.setenv("TILESTREAM_TEST_GAIN", str(gain))
    gain.write_text("2")
    settings = write_config(image, tmp_path, "told_corners", scheduler="local", workers=2)
    settings["encoder"] = {"name": settings["encoder"], "args": {"kept": kept}}
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    run = start(tmp_path)
    wait_for_shard(run, tmp_path)
    gain.write_text("3")
    for worker in dask_workers(run):
        worker.kill()
    _, err = run.communicate(timeout=200)
    assert run.returncode in (2, 5), err  # none is left, or tasks were handed on too often
    assert f"worker {os.uname().nodename} (process" in err
    assert re.search(r"is refused: its encoder has other weights \([0-9a-f]{12}\) than that of the run's first worker", err)
    gain.write_text("2")
    assert tilestream.run(settings).exit_code == 0
    rows = np.array(opened(tmp_path / "out", "a").embeddings[:])
    plain = {**settings, "output": {**settings["output"], "path": str(tmp_path / "plain")}, "compute": {"scheduler": "inline"}}
    tilestream.run({**plain, "encoder": "tests.support.encoders:corners"})
    np.testing.assert_array_equal(rows, 2 * opened(tmp_path / "plain", "a").embeddings[:])


def test_the_next_run_of_a_process_builds_its_encoder_of_what_its_files_hold_then(image, tmp_path):
    from tilestream.encoders.catalogue import EncoderSpec
    from tilestream.encoders.registry import build_encoder

    file = tmp_path / "e.safetensors"
    found = []
    for k in range(2):
        weights(file, build_encoder(EncoderSpec("patch_embed")))
        settings = given(image, tmp_path / f"run{k}", encoder={"name": "patch_embed", "weights": str(file)})
        tilestream.run(settings)
        found.append(opened(tmp_path / f"run{k}" / "out", "a"))
    assert not np.array_equal(found[0].embeddings[:], found[1].embeddings[:])
    assert found[0].recipe["encoder"]["weights_sha256"] != found[1].recipe["encoder"]["weights_sha256"]


def test_code_that_changed_after_its_import_is_not_taken_for_what_was_imported(image, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported.py").write_text("from tests.support.encoders import corners\n")
    tilestream.run(given(image, tmp_path, encoder="imported:corners"))
    (tmp_path / "imported.py").write_text("from tests.support.encoders import scaled as corners\n")
    with pytest.raises(ConfigError, match=r"imported\.py of imported:corners changed after this process had imported it"):
        tilestream.run(given(image, tmp_path / "two", encoder="imported:corners"))
