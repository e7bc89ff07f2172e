"""Tensors as the kernels read them.

Shapes: C classes, D embedding.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from kiloseg.ops.cpu.compiler import library

MAX_DIM = 256
"""Largest D; a thread keeps a few vectors of so many values for a group of pixels on its stack."""

MAX_NEAREST = 64
"""Most classes that a pixel holds while it searches."""


class Lanes(NamedTuple):
    """Sizes that depend on the CPU."""

    lanes: int
    """float32 values in a vector: the width of a row is a multiple."""
    group: int
    """Pixels that are computed together."""
    tile: int
    """Classes that are: the number of rows is a multiple."""


@functools.cache
def lanes() -> Lanes:
    """Those of the compiled kernels, which must be there."""
    kernels = library()
    assert kernels is not None
    values = [
        ctypes.c_int64.in_dll(kernels, f"kiloseg_{name}").value for name in (*Lanes._fields, "max_dim", "max_nearest")
    ]
    assert values[len(Lanes._fields) :] == [MAX_DIM, MAX_NEAREST]
    return Lanes(*values[: len(Lanes._fields)])


class CellsSizes(NamedTuple):
    """Sizes of the loss by scores at cells that depend on the CPU or on its sources."""

    tile: int
    """Classes of a panel."""
    floats: int
    """Numbers kept of a pixel."""
    integers: int
    """Integers kept of a pixel."""


@functools.cache
def cells_sizes() -> CellsSizes:
    """Those of the compiled kernels, which must be there."""
    kernels = library()
    assert kernels is not None
    return CellsSizes(*(ctypes.c_int64.in_dll(kernels, f"kiloseg_cells_{name}").value for name in CellsSizes._fields))


def holds_data(tensor: Tensor) -> bool | None:
    """Whether a kernel can read it: True; False for the fake tensors that memory is planned on; None for other kinds."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return True
    return False if isinstance(tensor, FakeTensor) else None


def pointer(name: str, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """Where a tensor's values lie, None for none.

    Raises:
        ValueError: not on a CPU, of another type, or not contiguous.
    """
    if tensor is None:
        return None
    if tensor.device.type != "cpu" or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tensor.dtype} with strides {tensor.stride()} on {tensor.device}: expected contiguous {dtype} on cpu"
        )
    return tensor.data_ptr()


def whole_rows(rows_CD: Tensor, *, tiles: bool = True) -> Tensor:
    """The rows filled up with zeros to whole vectors and, with `tiles`, to whole tiles; the same tensor where they are."""
    C, D = rows_CD.shape
    size = -(-C // lanes().tile) * lanes().tile if tiles else C, -(-D // lanes().lanes) * lanes().lanes
    if size == (C, D):
        return rows_CD.contiguous()
    whole = rows_CD.new_empty(size)
    whole[:C, :D] = rows_CD
    whole[:C, D:] = 0
    whole[C:] = 0
    return whole
