"""Let timm be imported beside a torch that the installed torchvision was not built for; never shipped.

torchvision registers shape functions for operators of its compiled library. Where that library does not load, the operators do not
exist and the import fails; declaring their names is enough, as no test calls them.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # declarations live as long as the object


def declare_missing_operators() -> None:
    """Make `import torchvision` work; does nothing where it works already or there is no torchvision."""
    if _libraries or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        importlib.import_module("torchvision")
