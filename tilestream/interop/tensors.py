"""Features as one PyTorch tensor, as CLAM's `pt_files` are.

Source: https://github.com/mahmoodlab/CLAM (description of its outputs); https://docs.pytorch.org/docs/stable/generated/torch.save.html.
"""

from __future__ import annotations

from tilestream.interop.target import Target, Written
from tilestream.store.slide import Slide


def write_tensor(slide: Slide, target: Target) -> Written:
    """A file that `torch.load` reads, with `weights_only` too: (n, d) float32, one row a tile that did not fail, row-major.

    Memory bound: a block of rows; the tensor that is saved is a mapped file beside the target, of the same size, for as long as it takes.
    """
    import torch

    written, dim = Written.without_failed(slide), int(slide.vectors().shape[1])
    count = written.tiles
    with target.writing() as path:
        scratch = path.with_name(f"{target.path.name}.rows")
        with scratch.open("wb") as file:
            for _, values in slide.good_blocks():
                file.write(values.tobytes())
        mapped = torch.from_file(str(scratch), shared=True, size=count * dim, dtype=torch.float32) if count else torch.empty(0)
        torch.save(mapped.reshape(count, dim), path)
    return written
