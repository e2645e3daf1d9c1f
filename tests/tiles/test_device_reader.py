"""Tiles gathered from pieces decoded in groups equal those of `TileReader`, and each piece is decoded once."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import tifffile
import torch

import tilestream.tiles.device_reader as module
from benchmarks import bench_device_reading
from tests.support.images import make_image, write_pyramid
from tilestream.errors import ConfigError, ReadError
from tilestream.sources.base import SourceOptions
from tilestream.sources.tiff.codecs.jpeg import scan_markers
from tilestream.sources.tiff.source import TiffSource
from tilestream.tiles.device_decoding import CpuDecoder, HostDecoder, NvImageCodecDecoder
from tilestream.tiles.device_reader import DeviceTileReader, can_decode_on_device
from tilestream.tiles.read_spec import ReadSpec
from tilestream.tiles.tile_reader import TileReader

HEIGHT, WIDTH, TILE = 700, 1100, 96
WAYS = {
    "420": {"subsampling": (2, 2)},
    "444": {"subsampling": (1, 1)},
}


class Counting(CpuDecoder):
    """Counts streams, and writes into what the last call gave out, as a decoder with memory of its own does."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls, self.last = [], 0, None

    def decode(self, streams, height, width):
        if self.last is not None:
            self.last.fill_(77)
        self.seen += streams
        self.calls += 1
        pixels, failures = super().decode(streams, height, width)
        self.last = pixels
        return pixels, failures


@pytest.fixture(scope="module")
def image():
    return make_image(HEIGHT, WIDTH, seed=3)


def slide(tmp_path, image, tile=128, **options):
    return TiffSource(str(write_pyramid(tmp_path / "a.tif", image, tile=tile, levels=1, **options)), SourceOptions())


def some_tiles(scale=1.0, stride=80, kept=0.6):
    step = int(stride * scale)
    y, x = (a.ravel() for a in np.mgrid[-step:HEIGHT:step, -step:WIDTH:step])
    keep = np.random.default_rng(2).random(len(y)) < kept
    return y[keep].astype(np.int64), x[keep].astype(np.int64)


def read_device(source, spec, y, x, decoder=None, batch=16, threads=2):
    with ThreadPoolExecutor(threads) as pool:
        reader = DeviceTileReader(source, spec, decoder=decoder or CpuDecoder(), pool=pool, threads=threads, batch=batch)
        return list(reader.read(y, x))


def by_tile(batches):
    return {
        k: torch.as_tensor(pixels).numpy()
        for b in batches
        for k, pixels in zip(b.index.tolist(), b.pixels, strict=True)
        if k not in b.failed
    }


def read_host(source, spec, y, x):
    with ThreadPoolExecutor(1) as pool:
        batches = list(TileReader(source, spec, pool=pool, threads=1, batch=16).read(y, x))
    return by_tile(batches), {k: reason for b in batches for k, reason in b.failed.items()}


def assert_equal(found, expected, apart=0):
    assert sorted(found) == sorted(expected)
    for k, pixels in expected.items():
        assert np.abs(found[k].astype(int) - pixels).max() <= apart


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", [96, 128, 240, None])
@pytest.mark.parametrize("group", [1, 7, 256])
def test_tiles_equal_those_decoded_one_by_one(tmp_path, image, monkeypatch, way, tile, group):
    monkeypatch.setattr(module, "GROUP_PIECES", group)
    source, spec = slide(tmp_path, image, tile, **WAYS[way]), ReadSpec(0, 1.0, TILE, 1.0)
    y, x = some_tiles()
    batches = read_device(source, spec, y, x)
    assert sorted(k for b in batches for k in b.index.tolist()) == list(range(len(y)))
    assert all(b.pixels.shape == (len(b.index), TILE, TILE, 3) and b.pixels.dtype == torch.uint8 for b in batches)
    assert_equal(by_tile(batches), read_host(source, spec, y, x)[0])


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"tile": None}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pieces_decoded_by_threads_of_the_host_give_the_same_tiles(tmp_path, image, monkeypatch, options, scale):
    monkeypatch.setattr("tilestream.tiles.read_spec.HOST_GROUP_PIECES", 5)
    path = write_pyramid(tmp_path / "a.tif", image, levels=1, **{"tile": 128, **options})
    if not options:
        empty(path, 11)
        damage(path, 19, b"\0" * 900)
    source, spec, decoder = TiffSource(str(path), SourceOptions()), ReadSpec(0, 1.0, TILE, scale), HostDecoder("cpu")
    for seed in (1, 2):  # the decoder's memory is used again
        y, x = some_tiles(scale, kept=0.5 * seed)
        batches = read_device(source, spec, y, x, decoder)
        pixels, failed = read_host(source, spec, y, x)
        assert bool(failed) == (not options)
        assert {k: reason for b in batches for k, reason in b.failed.items()} == failed
        assert_equal(by_tile(batches), pixels)


def test_grey_becomes_rgb(tmp_path, image):
    source, spec = slide(tmp_path, image[..., 0]), ReadSpec(0, 1.0, TILE, 1.0)
    assert can_decode_on_device(source, 0)
    assert_equal(by_tile(read_device(source, spec, *some_tiles())), read_host(source, spec, *some_tiles())[0])


@pytest.mark.parametrize(("scale", "apart"), [(2.0, 0), (4.0, 0), (2.03, 1), (1.5, 1)])
def test_averaged_tiles_equal_where_the_factor_is_whole_and_are_within_one_level_elsewhere(tmp_path, image, monkeypatch, scale, apart):
    monkeypatch.setattr(module, "GATHER_PIXELS", 200_000)
    source, spec = slide(tmp_path, image), ReadSpec(0, 1.0, TILE, scale)
    y, x = some_tiles(scale)
    assert_equal(by_tile(read_device(source, spec, y, x)), read_host(source, spec, y, x)[0], apart)


def test_tiles_that_start_between_pixels_of_the_level_are_averaged_within_one_level(tmp_path, image):
    source, spec = slide(tmp_path, image), ReadSpec(0, 1.25, TILE, 2.5)
    y, x = some_tiles(1.25)
    assert_equal(by_tile(read_device(source, spec, y, x)), read_host(source, spec, y, x)[0], 1)


def test_each_piece_is_decoded_once_and_none_in_vain(tmp_path, image):
    source, decoder = slide(tmp_path, image), Counting()
    y, x = some_tiles(kept=0.2)
    found = by_tile(read_device(source, ReadSpec(0, 1.0, TILE, 1.0), y, x, decoder))
    needed = {
        source.encoded_segment(0, row, col)
        for ty, tx in zip(y, x, strict=True)
        for row in range(max(ty, 0) // 128, (min(ty + TILE, HEIGHT) - 1) // 128 + 1)
        for col in range(max(tx, 0) // 128, (min(tx + TILE, WIDTH) - 1) // 128 + 1)
    }
    assert len(decoder.seen) == len(set(decoder.seen)) == len(needed)
    assert decoder.calls == 1
    assert_equal(found, read_host(source, ReadSpec(0, 1.0, TILE, 1.0), y, x)[0])


def test_the_order_does_not_depend_on_threads_or_the_decoder(tmp_path, image, monkeypatch):
    monkeypatch.setattr(module, "GROUP_PIECES", 5)
    source = slide(tmp_path, image)
    y, x = some_tiles()
    orders = [[b.index.tolist() for b in read_device(source, ReadSpec(0, 1.0, TILE, 1.0), y, x, threads=t)] for t in (1, 2, 5)]
    assert orders[0] == orders[1] == orders[2]


def damage(path, cell, data, at=0):
    """Overwrite a piece from byte `at` on."""
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[cell]
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)


def empty(path, cell):
    """Set the byte count of a piece to 0."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        counts[cell] = 0
        tif.pages[0].tags["TileByteCounts"].overwrite(counts)


def test_pieces_without_bytes_are_white(tmp_path, image):
    path = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)
    empty(path, 11)
    source, spec = TiffSource(str(path), SourceOptions()), ReadSpec(0, 1.0, TILE, 1.0)
    assert source.encoded_segment(0, 1, 2) is None
    y, x = some_tiles(kept=1.0)
    found = by_tile(read_device(source, spec, y, x))
    assert_equal(found, read_host(source, spec, y, x)[0])
    inside = next(k for k in range(len(y)) if (y[k], x[k]) == (160, 240))
    assert (found[inside][:, 16:] == 255).all()


@pytest.mark.parametrize(("data", "at"), [(b"\0" * 900, 0), (b"\xff\xd9", 1500)], ids=["header", "scan"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_broken_piece_fails_exactly_its_tiles_with_the_words_of_the_host(tmp_path, image, data, at, scale):
    path = write_pyramid(tmp_path / "a.tif", image, tile=128, levels=1)
    damage(path, 11, data, at)
    source, spec = TiffSource(str(path), SourceOptions()), ReadSpec(0, 1.0, TILE, scale)
    y, x = some_tiles(scale, kept=1.0)
    batches = read_device(source, spec, y, x)
    pixels, failed = read_host(source, spec, y, x)
    assert failed
    assert {k: reason for b in batches for k, reason in b.failed.items()} == failed
    assert_equal(by_tile(batches), pixels)


def test_the_arena_holds_little_more_than_two_lines_of_pieces(tmp_path, image, monkeypatch):
    monkeypatch.setattr(module, "GROUP_PIECES", 4)
    source, spec = slide(tmp_path, make_image(2000, 400), 64), ReadSpec(0, 1.0, 64, 1.0)
    y, x = (a.ravel().astype(np.int64) for a in np.mgrid[10:1900:64, 10:330:64])
    shard = module._Shard(source, spec, CpuDecoder(), (spec.px_origins(y), spec.px_origins(x)), 4)
    assert len(shard.plan.places) == 6 * 31
    assert shard.plan.capacity <= 1 + 2 * 6 + 2 * 4


def test_stopping_early_leaves_no_job_behind(tmp_path, image):
    with ThreadPoolExecutor(2) as pool:
        spec = ReadSpec(0, 1.0, TILE, 1.0)
        batches = DeviceTileReader(slide(tmp_path, image), spec, decoder=CpuDecoder(), pool=pool, threads=2, batch=4).read(*some_tiles())
        next(batches)
        batches.close()


def test_an_empty_list_gives_no_batches(tmp_path, image):
    nothing = np.array([], np.int64)
    assert read_device(slide(tmp_path, image), ReadSpec(0, 1.0, TILE, 1.0), nothing, nothing) == []


def test_only_plain_jpeg_is_decoded_on_the_device(tmp_path, image):
    assert can_decode_on_device(slide(tmp_path, image), 0)
    assert not can_decode_on_device(slide(tmp_path, image, compression="deflate"), 0)
    assert not can_decode_on_device(slide(tmp_path, image, photometric="rgb", jpeg_rgb=True), 0)
    grey = write_pyramid(tmp_path / "b.tif", image[..., 0], levels=1, photometric="miniswhite")
    assert not can_decode_on_device(TiffSource(str(grey), SourceOptions()), 0)
    path = write_pyramid(tmp_path / "c.tif", image, tile=128, levels=1)
    reduced = TiffSource(str(path), SourceOptions(reduced=True))
    assert [can_decode_on_device(reduced, k) for k in range(len(reduced.info.levels))] == [True, False, False]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(ConfigError, match=r"pip install 'tilestream\[gpu\]'"):
        NvImageCodecDecoder("cuda")


class Codec:
    """Stands in for nvImageCodec on the host: the calls that we make of it, with its habits as seen on version 0.9."""

    __version__ = "0.9"
    BackendKind = SimpleNamespace(HW_GPU_ONLY=0, HYBRID_CPU_GPU=1, GPU_ONLY=2)
    ColorSpec, SampleFormat = SimpleNamespace(SRGB=0), SimpleNamespace(I_RGB=0)
    can_decode = True

    def __init__(self):
        self.refused = []

    def Backend(self, kind):
        return kind

    def DecodeParams(self, **options):
        return options

    def CodeStream(self, data):
        try:
            frame = scan_markers(data)
        except ReadError as error:
            raise RuntimeError("Failed to get image info") from error
        return SimpleNamespace(data=data, height=frame.height, width=frame.width)

    def as_images(self, arrays, **options):
        return list(arrays)

    def Decoder(self, **options):
        assert ":fancy_upsampling=1" in options["options"]
        return self

    def decode(self, codes, images=None, params=None, cuda_stream=0):
        assert len(images) == len(codes)
        done = []
        for code, image in zip(codes, images, strict=True):
            if not self.can_decode or code.data in self.refused:
                done.append(None)
                continue
            pixels = CpuDecoder().decode([code.data], code.height, code.width)[0][0]
            image[: code.height, : code.width] = pixels
            done.append(image)
        return done


@pytest.fixture
def codec(monkeypatch):
    made = Codec()
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return made


def test_of_a_batch_only_the_corrupt_streams_fail(codec, image):
    good, small = (simplejpeg.encode_jpeg(np.ascontiguousarray(image[:h, :w]), 90, "RGB", "420") for h, w in ((128, 128), (40, 60)))
    large = simplejpeg.encode_jpeg(np.ascontiguousarray(image[:200, :200]), 90, "RGB", "420")
    refused = simplejpeg.encode_jpeg(np.ascontiguousarray(image[50:178, :128]), 90, "RGB", "420")
    codec.refused = [refused]
    streams = [good, b"junk", good[: len(good) // 2], small, refused, good + b"\0", large]
    pixels, failures = NvImageCodecDecoder("cpu").decode(streams, 128, 128)
    assert sorted(failures) == [1, 2, 6]
    assert "not a JPEG" in failures[1]
    assert "JPEG decoder" in failures[2]
    assert "200 x 200" in failures[6]
    for k, stream in ((0, good), (3, small), (4, refused), (5, good)):
        expected = simplejpeg.decode_jpeg(stream, "RGB")
        assert np.array_equal(pixels[k, : expected.shape[0], : expected.shape[1]].numpy(), expected)


def test_a_codec_that_is_too_old_is_refused_at_the_start(codec, monkeypatch):
    monkeypatch.setattr(Codec, "decode", lambda self, codes: codes)
    with pytest.raises(ConfigError, match=r"nvImageCodec 0\.9 fails.*images"):
        NvImageCodecDecoder("cpu")


def test_tiles_through_the_codec_equal_those_decoded_one_by_one(codec, tmp_path, image, monkeypatch):
    monkeypatch.setattr(module, "GROUP_PIECES", 7)
    source, spec = slide(tmp_path, image), ReadSpec(0, 1.0, TILE, 1.0)
    found = by_tile(read_device(source, spec, *some_tiles(), decoder=NvImageCodecDecoder("cpu")))
    assert_equal(found, read_host(source, spec, *some_tiles())[0])


def test_a_codec_without_its_library_is_refused_at_the_start(codec):
    codec.can_decode = False
    with pytest.raises(ConfigError, match="nvJPEG library is missing"):
        NvImageCodecDecoder("cpu")


@pytest.mark.slow
def test_the_benchmark_runs_small(capsys):
    told = bench_device_reading.main(["--side", "512", "--file-tiles", "240", "--threads", "2", "--rounds", "1", "--flips", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == told
    assert [row["tiles"] for row in told["rows"]] == [4]
    assert all(found["within_1"] > 0.999 for ways in told["agreement"].values() for found in ways.values())
