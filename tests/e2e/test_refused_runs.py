"""A run that is refused changes no byte of what lies in its output, finished or not, whatever it is refused for."""

import sys

import numpy as np
import pytest

import tilestream
from tests.support.heads import head_file
from tests.support.images import make_image, write_pyramid
from tests.support.runs import bytes_of, given
from tilestream.errors import ConfigError, InterruptedRunError, TilestreamError
from tilestream.store.slide_store import SlideStore

CONTEXT = {"window": 4, "depth": 1, "heads": 2, "width": 8}
TIGHT = {"memory_limit": "64MiB"}

REFUSED = {
    "a head that memory does not suffice for": ({"heads": {"late": "classify"}, "compute": TIGHT}, {}, "compute.memory_limit"),
    "a stage once more": ({"compute": TIGHT}, {"restart": "context"}, "compute.memory_limit"),
    "all once more": ({"compute": TIGHT}, {"restart": True}, "compute.memory_limit"),
    "another context": ({"context": {**CONTEXT, "depth": 2}, "compute": TIGHT}, {}, "compute.memory_limit"),
    "no pyarrow": ({"heads": {"late": "detect"}}, {}, "pyarrow"),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_pyramid(tmp_path_factory.mktemp("image") / "a.tif", make_image(256, 320, 4), levels=1, compression="deflate", mpp=0.5)


@pytest.fixture(params=["finished", "cut short"])
def output(request, image, tmp_path, monkeypatch):
    settings = given(image, tmp_path / "out", context=CONTEXT, compute={"shard_tiles": 8})
    if request.param == "finished":
        assert tilestream.run(settings).exit_code == 0
        return tmp_path / "out"
    record = SlideStore.write_shard

    def dies_in_the_second(self, shard, *rest, **stage):
        if shard == 1:
            raise InterruptedRunError("killed")
        record(self, shard, *rest, **stage)

    with monkeypatch.context() as patched:
        patched.setattr(SlideStore, "write_shard", dies_in_the_second)
        with pytest.raises(InterruptedRunError, match="killed"):
            tilestream.run(settings)
    return tmp_path / "out"


@pytest.mark.parametrize("why", REFUSED)
def test_it_leaves_every_byte_and_the_first_command_ends_as_it_would_have(image, output, tmp_path, monkeypatch, why):
    sections, asked, words = REFUSED[why]
    heads = {"classify": lambda: head_file(tmp_path / "late.safetensors")[0], "detect": lambda: "tests.support.made_nuclei:boxes"}
    made = {name: {"kind": kind, "model": heads[kind]()} for name, kind in sections.get("heads", {}).items()}
    for head in made.values():
        if head["kind"] == "detect":
            head |= {"size": 64, "overlap": 16}
            monkeypatch.setitem(sys.modules, "pyarrow", None)
    whole = {"context": CONTEXT, "compute": {"shard_tiles": 8}}
    wanted = whole | sections | {"heads": made, "compute": whole["compute"] | sections.get("compute", {})}
    before = bytes_of(output)
    with pytest.raises(TilestreamError, match=words) as refused:
        tilestream.run(given(image, output, **wanted), **asked)
    assert isinstance(refused.value, ConfigError)
    assert bytes_of(output) == before
    monkeypatch.undo()
    assert tilestream.run(given(image, output, **whole)).exit_code == 0
    assert tilestream.run(given(image, tmp_path / "calm", **whole)).exit_code == 0
    ended, calm = (tilestream.open(folder / "a.zarr") for folder in (output, tmp_path / "calm"))
    assert np.array_equal(ended.embeddings[:], calm.embeddings[:])
    assert np.array_equal(ended.context[:], calm.context[:])
