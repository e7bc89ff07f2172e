"""This package holds Triton kernels for GPUs. Only its modules import Triton, and they are imported only where they are used."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

MAX_NEAREST = 64
"""The most classes that a pixel can hold in registers while it searches."""

BLOCK_PATCHES = 2048
"""The target number of patches (`kiloseg.ops.triton.cells`) of a block, each a program of 128 pixels: 15 for each of an H100's 132
multiprocessors. This is calculated, not measured."""

MIN_DIM = 33
"""The fewest dimensions for which scores are taken at cells. Products are padded to a power of two W. In all passes of a loss there
are 4 W multiply-adds per pixel and class with products at pixels, and 80 + 5 W / 8 with products at cells: 256 and 120 with W = 64,
but 128 and 100 with W = 32, and one exponential more. These figures are calculated, not measured."""

MIN_FACTOR = 16
"""The fewest pixels per feature cell: with fewer, the 15 cells of a patch are not enough for its 128 pixels."""


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: on a GPU of compute capability 8.0 or more (bfloat16 on tensor cores), with Triton.

    KILOSEG_TRITON=0 in the environment turns them off, for comparison. TRITON_INTERPRET=1, which must be set before Triton is
    imported, makes Triton interpret its kernels, so they run, slowly, on CPU tensors.
    """
    if os.environ.get("KILOSEG_TRITON") == "0" or not _installed():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type == "cpu"
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def pays_at_cells(pixels_BDhw: Tensor, size: tuple[int, int]) -> bool:
    """Whether scores at cells cost less than scores at pixels, by the number of products."""
    _, D, h, w = pixels_BDhw.shape
    return D >= MIN_DIM and size[0] * size[1] >= MIN_FACTOR * h * w


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
