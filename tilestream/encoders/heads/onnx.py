"""Heads as ONNX files, run by onnxruntime on the processor (extra `onnx`). Nothing in such a file but its graph is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tilestream.config.heads import Head
from tilestream.encoders.heads.loaded import LoadedHead
from tilestream.encoders.heads.pixels import PixelClassifier, Preparation
from tilestream.encoders.imported import import_optional
from tilestream.errors import ConfigError, InputError
from tilestream.sources.files import file_sha256

_FLOAT, _UINT8 = "tensor(float)", "tensor(uint8)"


class OnnxModule(nn.Module):
    """A graph of one input as a torch module: its first output, on the input's device. It computes on the processor.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        Key of the config that names it, for errors.
    """

    on_processor = True

    def __init__(self, path: Path, key: str) -> None:
        super().__init__()
        library = import_optional("onnxruntime", "onnx", key)
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session: Any = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds have no common public base
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{key}: {path} cannot be read as ONNX ({first}). Export it again.") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ConfigError(f"{key}: {path} has {len(inputs)} inputs, but a head has one. Export it with one.")
        self.input, self.kind, self.shape = inputs[0].name, inputs[0].type, tuple(inputs[0].shape)
        if self.kind not in (_FLOAT, _UINT8):
            raise ConfigError(f"{key}: the input of {path} is {self.kind}, but it must be float32 or uint8. Export it so.")
        self.told: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        """What its maker wrote into it."""

    @property
    def takes_pixels(self) -> bool:
        """Whether its input is uint8."""
        return bool(self.kind == _UINT8)

    @property
    def side(self) -> int | None:
        """Side of the patches that it takes, px; None for any."""
        return self.shape[-1] if len(self.shape) == 4 and isinstance(self.shape[-1], int) else None

    def forward(self, x: Tensor) -> Tensor:
        """What the graph gives for one batch; batches are cut where it takes one size."""
        batch = self.shape[0] if isinstance(self.shape[0], int) else len(x)
        parts = [self._run(part, batch) for part in torch.split(x, batch)] if len(x) else [self._run(x, 0)]
        return torch.cat(parts).to(x.device)

    def _run(self, x: Tensor, batch: int) -> Tensor:
        given = np.ascontiguousarray(x.detach().cpu().numpy())
        if len(given) < batch:
            given = np.concatenate([given, np.zeros((batch - len(given), *given.shape[1:]), given.dtype)])
        return torch.from_numpy(self.session.run(None, {self.input: given})[0][: len(x)])


def load_onnx(path: Path, head: Head, name: str) -> LoadedHead:
    """A head of an ONNX file without a `config.json`; its metadata may say classes, mean, std, size and mpp, as JSON.

    Raises
    ------
    ConfigError
        It takes floats of pixels, and how they are normalised is not known; or a library is missing.
    InputError
        It cannot be read.
    """
    graph = OnnxModule(path, f"heads.{name}.model")
    told = {key: _value(text) for key, text in graph.told.items() if key in ("classes", "mean", "std", "size", "mpp")}
    module: nn.Module = graph
    if head.input == "pixels" and not graph.takes_pixels:
        if not {"mean", "std"} <= told.keys():
            raise ConfigError(
                f"heads.{name}.model: {path} takes float32, and how pixels are normalised is not known. Put its config.json beside it, write mean and std into its "
                "metadata, or export it with an input of uint8."
            )
        module = PixelClassifier(graph, Preparation(tuple(told["mean"]), tuple(told["std"])))
    classes = told.get("classes") or ()
    return LoadedHead(
        module, "classification", tuple(map(str, classes)), file_sha256(path), size=told.get("size") or graph.side, mpp=told.get("mpp")
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
