"""Inputs made wrong by structure: sound ones whose parts are replaced, dropped, repeated, declared too large or written by other means."""

import gzip
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zarr
from PIL import Image

from benchmarks.fuzzing import mutate

SIDE = 512
"""Side of the image that masks and places are of, px."""

Chance = random.Random


def weird(chance: Chance) -> Any:
    """A value that no reader expects where it stands."""
    nested: Any = 1
    for _ in range(chance.choice([3, 100, 800])):
        nested = [nested]
    return chance.choice(
        [None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**19), 0.5, 1e-300, 1e308, float("nan"), float("inf"), "", "x", "0", "1e9",
         "x" * 10_000, "\0", "\ud800", "../../x", "/dev/zero", "é\u202e", "NaN", [], {}, [[]], [{}], [0] * 20_000, {"a": {"b": None}}, nested]
    )  # fmt: skip


def mutate_tree(tree: Any, chance: Chance) -> Any:
    """The tree after one to three changes: a node replaced, dropped, repeated, wrapped or renamed."""
    for _ in range(chance.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return weird(chance)
        parent, key = chance.choice(places)
        match chance.choice(["replace", "replace", "drop", "repeat", "wrap", "rename", "number"]):
            case "drop":
                del parent[key]
            case "repeat" if isinstance(parent, list):
                parent.extend([parent[key]] * chance.choice([1, 1000]))
            case "wrap":
                parent[key] = chance.choice([[parent[key]], {"x": parent[key]}, str(parent[key])])
            case "rename" if isinstance(parent, dict):
                parent[chance.choice(["", "x", str(key).upper(), "\ud800"])] = parent.pop(key)
            case "number" if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                parent[key] = parent[key] * chance.choice([-1, 0, 1e-9, 1e9, 10**12])
            case _:
                parent[key] = weird(chance)
    return tree


def _places(tree: Any, depth: int = 0) -> Any:
    """(parent, key) of the nodes below the root, as far as a person would look."""
    if depth < 20 and isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(min(len(tree), 100)):
            yield tree, key
            yield from _places(tree[key], depth + 1)


def _json(tree: Any, chance: Chance) -> bytes:
    text = json.dumps(tree, ensure_ascii=chance.random() < 0.8)
    if chance.random() < 0.1:
        text = text.replace("}", "", 1) if chance.random() < 0.5 else text + chance.choice(["]", "x", "\0", text])
    return text.encode("utf-8", "surrogatepass") if chance.random() < 0.95 else text.encode("utf-16", "surrogatepass")


def make_geojson(chance: Chance, folder: Path) -> Path:
    """Annotations, plain or packed."""
    ring = [[10, 10], [300, 10], [300, 200], [10, 200], [10, 10]]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring, [[20, 20], [50, 20], [50, 50], [20, 20]]]}, "properties": None},
        {"type": "Feature", "id": "a", "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
         "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [1, 2, 3]}}},
        {"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]}, "properties": {}},
    ]  # fmt: skip
    tree = chance.choice([{"type": "FeatureCollection", "features": features}, features, features[0], features[0]["geometry"]])
    data = _json(mutate_tree(tree, chance), chance)
    data = mutate(data, data, chance) if chance.random() < 0.2 else data
    if chance.random() < 0.2:
        data = gzip.compress(data)
        data = mutate(data, data, chance) if chance.random() < 0.5 else data
        return _written(folder / "case.geojson.gz", data)
    return _written(folder / chance.choice(["case.geojson", "case.json"]), data)


ASAP = (
    '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>'
    '<Coordinate Order="0" X="10" Y="10" /><Coordinate Order="1" X="300.5" Y="10" /><Coordinate Order="2" X="300" Y="200" /></Coordinates></Annotation>'
    '</Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#000000"><Attributes /></Group></AnnotationGroups></ASAP_Annotations>'
)
SCOPE = (
    '<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="Tumor"><Regions><Region Id="1" Type="0" NegativeROA="0"><Vertices><Vertex X="10" Y="10" Z="0"/>'
    '<Vertex X="300" Y="10" Z="0"/><Vertex X="300" Y="200" Z="0"/></Vertices></Region></Regions></Annotation></Annotations>'
)


def make_markup(chance: Chance, folder: Path) -> Path:
    """Annotations as XML."""
    text = chance.choice([ASAP, SCOPE])
    for _ in range(chance.randint(1, 3)):
        values = list(re.finditer('"[^"]*"', text))
        if chance.random() < 0.7 and values:  # a value of an attribute
            start, end = chance.choice(values).span()
            value = chance.choice(
                [
                    "",
                    "1e999",
                    "nan",
                    "-1",
                    "9" * 5000,
                    "0",
                    "1",
                    "2",
                    "3",
                    "5e8",
                    "Polygon",
                    "Dot",
                    "Spline",
                    "Rectangle",
                    "x",
                    "&lt;",
                    "1,5",
                    "0x1",
                ]
            )
            text = f'{text[:start]}"{value}"{text[end:]}'
        else:
            start = chance.randrange(len(text))
            strange = ["<", ">", "&a;", "&#0;", "&#x110000;", "<Region>", "</Annotation>", "<x>" * 20_000, "<![CDATA[", "\ud800", ""]
            text = text[:start] + chance.choice(strange) + text[start + chance.randint(0, 9) :]
    if chance.random() < 0.1:
        text = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>' + text
    data = text.encode("utf-8", "surrogatepass")
    return _written(folder / "case.xml", mutate(data, data, chance) if chance.random() < 0.3 else data)


def make_csv(chance: Chance, folder: Path) -> Path:
    """A list of slides."""
    names = chance.sample(["id", "mpp", "mask", "other", "", "path"], chance.randint(0, 4))
    names.insert(chance.randint(0, len(names)), chance.choice(["path", "path", "path", " Path ", "x"]))
    cells = ["a.svs", "b.svs", "0.25", "", " ", "nan", "1e999", "-1", "1_0", "~/x.svs", "$HOME/x", "${", "~nobody/x", "s3://b/k", "http://[", "sample://he?width=x",
             "\0", "x" * 5000, "y" * 200_000, "=1+1", '"', '"a\nb"', "'", "..", "/", "a/../b", "\u202e.svs", "x\ty", "://", "file:///etc", "CON", "\ufeff"]  # fmt: skip
    count = chance.choice([0, 1, 5, 2000])
    width = [len(names)] if chance.random() < 0.7 else [len(names), len(names) - 1, len(names) + 1]
    rows = [
        [f"s{k}.svs" if chance.random() < 0.5 else cell for cell in chance.choices(cells, k=chance.choice(width))] for k in range(count)
    ]
    glue, end = chance.choice([",", ",", ",", ";", "\t"]), chance.choice(["\n", "\r\n", "\r"])
    data = end.join(glue.join(row) for row in [names, *rows]).encode(
        chance.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace"
    )
    return _written(folder / "case.csv", mutate(data, data, chance) if chance.random() < 0.3 else data)


CONFIG = {
    "slides": ["a.svs"], "output": {"path": "out", "save": ["tiles"], "dtype": "float16"}, "source": {"z": 0, "channels": [0, 1, 2], "window": [0, 4095]},
    "tiles": {"size": 224, "mpp": 0.5, "tissue": {"mask": "a.geojson", "min_fraction": 0.1}}, "encoder": {"name": "patch_embed", "weights": "w.pth", "args": {"a": 1}},
    "context": {"window": 8, "heads": 6, "exact": False}, "pool": "mean", "on_error": {"slide": "skip", "tile": "nan"},
    "compute": {"scheduler": {"class": "a.B", "args": {}}, "workers": "auto", "memory_limit": "4GiB", "batch_size": 8},
}  # fmt: skip


def make_yaml(chance: Chance, folder: Path) -> Path:
    """A config."""
    tree = mutate_tree(json.loads(json.dumps(CONFIG)), chance)
    try:
        text = yaml.safe_dump(tree, allow_unicode=chance.random() < 0.5, default_flow_style=chance.choice([None, True, False]))
    except (RecursionError, ValueError):  # too deep to be written, or half a character
        text = json.dumps(tree)
    strange = ["\t", "&a ", "*a", "!!python/object:os.system ", "!x ", "? ", "- ", ": ", "{", "[", "[" * 3000, "|\n", ">-\n", '"\\U00110000"', '"\\ud800"', "%YAML 9.9\n",
               "---\n", "...\n", "<<: *a\n", "0x_", "1:2:3", "2020-01-01", "=", "!!binary x", "!!int a", "!!float '_'", "9" * 5000, "\x85", "\ufeff", "1e5_"]  # fmt: skip
    for _ in range(chance.choice([0, 0, 1, 3])):
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(strange) + text[place:]
    data = text.encode("utf-8", "surrogatepass")
    return _written(folder / "case.yaml", mutate(data, data, chance) if chance.random() < 0.2 else data)


def make_zarr(chance: Chance, folder: Path) -> Path:
    """An OME-Zarr image of version 0.4 or 0.5 with its metadata changed; its chunks are sound."""
    version, target = chance.choice([2, 3]), folder / "case.zarr"
    axes = [
        {"name": name, "type": "channel" if name == "c" else "space"} | ({} if name == "c" else {"unit": "micrometer"}) for name in "cyx"
    ]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}]} for k in range(2)
    ]
    image = {"multiscales": [{"name": "a", "version": "0.4", "axes": axes, "datasets": datasets}], "omero": {"channels": [{"label": "r"}]}}
    root = zarr.create_group(target, zarr_format=version, attributes=image if version == 2 else {"ome": {"version": "0.5", **image}})
    for k in range(2):
        names = {"dimension_names": list("cyx")} if version == 3 else {}
        root.create_array(str(k), data=np.full((3, 128 >> k, 128 >> k), 200, np.uint8), chunks=(3, 64, 64), **names)
    files = sorted(path for path in target.rglob("*") if path.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup"))
    for path in chance.sample(files, chance.choice([1, 1, 2])):
        data = _json(mutate_tree(json.loads(path.read_bytes()), chance), chance)
        path.write_bytes(mutate(data, data, chance) if chance.random() < 0.1 else data)
    return target


def make_coords(chance: Chance, folder: Path) -> Path:
    """Places as TRIDENT and CLAM write them."""
    path = folder / "case.h5"
    with h5py.File(path, "w") as file:
        _dataset(file, "coords", np.array([(x, y) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)], np.int64), chance)
        _attributes(file, chance)
        if chance.random() < 0.2:
            file.attrs["l0_extent"] = _number(chance)
    return _maybe_damaged(path, chance)


def make_features(chance: Chance, folder: Path) -> Path:
    """Features and places."""
    path = folder / "case.h5"
    xy = np.array([(x, y) for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)], np.int64)
    with h5py.File(path, "w") as file:
        _dataset(file, "features", np.random.default_rng(0).random((len(xy), 8), np.float32), chance)
        if chance.random() < 0.5:
            file.create_dataset("coords", data=xy)
        else:
            _dataset(file, "coords", xy, chance)
        _attributes(file, chance)
        if (features := _own(file, "features")) is not None:
            features.attrs["encoder"] = chance.choice(["uni", b"uni", "x" * 5000, 5, b"\xff", [1, 2], h5py.Empty("f")])
    return _maybe_damaged(path, chance)


def _maybe_damaged(path: Path, chance: Chance) -> Path:
    if chance.random() < 0.4:
        data = path.read_bytes()
        path.write_bytes(mutate(data, data, chance))
    return path


def _dataset(file: h5py.File, name: str, values: np.ndarray, chance: Chance) -> None:
    """A dataset that holds the values, or something else in their name."""
    n = len(values)
    strange: list[Callable[[], object]] = [
        lambda: file.create_dataset(
            name, data=values, chunks=(max(1, n // 3), values.shape[1]), compression=chance.choice(["gzip", "lzf", None])
        ),
        lambda: file.create_dataset(
            name, data=values.astype(chance.choice(["<u8", ">i4", "<i2", "u1", "<f4", ">f8", "<f2", "?", "<c8", "S5", "O"][:10]))
        ),
        lambda: file.create_dataset(
            name,
            data=chance.choice([values.ravel(), values[:0], values[:, :1], values[None], values[0, 0], values - 10**6, values * 10**9]),
        ),
        lambda: file.create_dataset(
            name, shape=(2 ** chance.randint(20, 40), values.shape[1]), dtype=values.dtype, chunks=(1024, values.shape[1])
        ),
        lambda: file.create_dataset(
            name, shape=(2 ** chance.randint(27, 40), 2), dtype=values.dtype, chunks=(2 ** chance.randint(20, 27), 2)
        ),
        lambda: file.create_dataset(name, shape=(n, 2 ** chance.randint(10, 40)), dtype=values.dtype, chunks=(1, 1024)),
        lambda: file.create_dataset(name, shape=(2**33, 2), dtype=values.dtype),
        lambda: file.create_dataset(
            name, shape=values.shape, dtype=values.dtype, external=[(chance.choice(["/etc/passwd", "/dev/zero", "/nowhere"]), 0, 2**20)]
        ),
        lambda: file.create_dataset(name, data=np.array(["a", "b"], object), dtype=h5py.string_dtype()),
        lambda: file.create_dataset(name, shape=(n, 2), dtype=h5py.vlen_dtype(np.int64)),
        lambda: file.create_dataset(name, data=np.zeros((n, 2), [("x", "i4"), ("y", "i4")])),
        lambda: file.create_dataset(name, data=h5py.Empty("f")),
        lambda: file.create_group(name),
        lambda: file.__setitem__(name, h5py.SoftLink(chance.choice([f"/{name}", "/", "/nowhere"]))),
        lambda: file.__setitem__(name, h5py.ExternalLink(chance.choice(["/etc/passwd", "case.h5", "/dev/zero"]), "/coords")),
        lambda: file.create_virtual_dataset(name, _virtual(values), fillvalue=1),
        lambda: file.__setitem__(name, np.dtype("i4")),
        lambda: None,
    ]
    made = chance.choice([*strange, *[lambda: file.create_dataset(name, data=values)] * len(strange)])
    made()


def _own(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset that the file holds itself."""
    found = file[name] if name in file and isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    return found if isinstance(found, h5py.Dataset) else None


def _virtual(values: np.ndarray) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=(2**30, values.shape[1]), dtype=values.dtype)
    layout[: len(values)] = h5py.VirtualSource("/etc/passwd", "coords", shape=values.shape)
    return layout


def _attributes(file: h5py.File, chance: Chance) -> None:
    if (coords := _own(file, "coords")) is None:
        return
    sound = {"patch_size": 64, "patch_size_level0": 64, "patch_level": 0, "overlap": 0, "level0_width": SIDE, "level0_height": SIDE}
    for name, value in sound.items():
        if chance.random() < 0.8:
            coords.attrs[name] = value if chance.random() < 0.8 else _number(chance)
    if chance.random() < 0.1:
        coords.attrs["custom_downsample"] = _number(chance)


def _number(chance: Chance) -> Any:
    return chance.choice(
        [0, -1, 1, 2, 1e-9, 0.3, 2**31, 2**63 - 1, 1e308, np.nan, np.inf, "64", b"64", [64, 64], [], np.zeros(5000), np.uint8(64), np.float16(64), True, "x" * 60_000,
         h5py.Empty("f"), np.array([64]), np.array([[64.0]]), np.complex64(64)]
    )  # fmt: skip


def make_mask(chance: Chance, folder: Path) -> Path:
    """A picture: of any mode, with chunks changed under right checksums, or of another kind under the name."""
    mode = chance.choice(["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"])
    shape = chance.choice([(64, 64), (64, 64), (1, 1), (64, 32), (300, 301)])
    values = np.random.default_rng(chance.randrange(100)).integers(0, 256, (*shape, 4), np.uint8)
    base = Image.fromarray(values)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 256) if mode == "I;16" else base.convert("RGB").convert(mode)
    kind = chance.choice(["PNG", "PNG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "JPEG"])
    raw = io.BytesIO()
    try:
        picture.save(raw, kind)
    except (OSError, KeyError, ValueError):  # a mode that the kind does not have
        kind = "PNG"
        raw = io.BytesIO()
        Image.fromarray(values).save(raw, kind)
    data = raw.getvalue()
    data = _changed_chunks(data, chance) if kind == "PNG" else data
    data = mutate(data, data, chance) if chance.random() < 0.4 else data
    return _written(folder / chance.choice(["case.png", "case.tif"]), data)


def _changed_chunks(data: bytes, chance: Chance) -> bytes:
    """The PNG with chunks dropped, repeated, added or saying other sizes."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    bomb = zlib.compress(bytes(50_000_000), 9)
    match chance.choice(["size", "size", "drop", "repeat", "text", "profile", "header", "none", "transparency"]):
        case "size":
            sides = chance.choice(
                [
                    (0, 0),
                    (1, 2**31 - 1),
                    (16_000, 16_000),
                    (13_000, 13_000),
                    (9_000, 9_000),
                    (2**31 - 1, 2**31 - 1),
                    (178_000, 1000),
                    (64, 63),
                ]
            )
            chunks[0] = (b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:])
        case "header":
            chunks[0] = (
                b"IHDR",
                chunks[0][1][:8]
                + bytes([chance.choice([1, 2, 4, 8, 16, 3]), chance.choice([0, 2, 3, 4, 6, 9]), 0, 0, chance.randint(0, 2)]),
            )
        case "drop":
            del chunks[chance.randrange(len(chunks))]
        case "repeat":
            chunks += [chance.choice(chunks)] * chance.choice([1, 500])
        case "text":
            chunks.insert(1, (chance.choice([b"zTXt", b"iTXt"]), b"a\0\0" + bomb))
        case "profile":
            chunks.insert(1, (b"iCCP", b"a\0\0" + bomb))
        case "transparency":
            chunks.insert(1, (chance.choice([b"tRNS", b"PLTE", b"acTL", b"eXIf"]), chance.randbytes(chance.choice([0, 1, 6, 800]))))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
