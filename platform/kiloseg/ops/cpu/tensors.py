"""Prepares tensors in the form that the kernels read.

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
"""The largest D. A thread keeps a few vectors of this many values for a group of pixels on its stack."""

MAX_NEAREST = 64
"""The most classes that a pixel can hold while it searches."""


class Lanes(NamedTuple):
    """Holds sizes that depend on the CPU."""

    lanes: int
    """The float32 values in a vector. The width of a row is a multiple of it."""
    group: int
    """The number of pixels that are computed together."""
    tile: int
    """The number of classes that are computed together. The number of rows is a multiple of it."""


@functools.cache
def lanes() -> Lanes:
    """Returns the sizes of the compiled kernels, which must be available."""
    kernels = library()
    assert kernels is not None
    values = [
        ctypes.c_int64.in_dll(kernels, f"kiloseg_{name}").value for name in (*Lanes._fields, "max_dim", "max_nearest")
    ]
    assert values[len(Lanes._fields) :] == [MAX_DIM, MAX_NEAREST]
    return Lanes(*values[: len(Lanes._fields)])


class CellsSizes(NamedTuple):
    """Holds sizes of the loss by scores at cells that depend on the CPU or on its sources."""

    tile: int
    """The number of classes in a panel."""
    floats: int
    """The number of floats kept per pixel."""
    integers: int
    """The number of integers kept per pixel."""
    nearest: int
    """The largest K of a search for the K nearest classes."""


@functools.cache
def cells_sizes() -> CellsSizes:
    """Returns the sizes of the compiled kernels, which must be available."""
    kernels = library()
    assert kernels is not None
    return CellsSizes(*(ctypes.c_int64.in_dll(kernels, f"kiloseg_cells_{name}").value for name in CellsSizes._fields))


def holds_data(tensor: Tensor) -> bool | None:
    """Whether a kernel can read it: True; False for the fake tensors that memory is planned on; None for other kinds."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return True
    return False if isinstance(tensor, FakeTensor) else None


def pointer(name: str, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """Returns the address of a tensor's values, or None for None.

    Raises:
        ValueError: The tensor is not on a CPU, has another type, or is not contiguous.
    """
    if tensor is None:
        return None
    if tensor.device.type != "cpu" or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tensor.dtype} with strides {tensor.stride()} on {tensor.device}: expected contiguous {dtype} on cpu"
        )
    return tensor.data_ptr()


def whole_rows(rows_CD: Tensor, *, tiles: bool = True) -> Tensor:
    """Pads the rows with zeros to whole vectors and, with `tiles`, to whole tiles; returns the same tensor if nothing is
    missing."""
    C, D = rows_CD.shape
    size = -(-C // lanes().tile) * lanes().tile if tiles else C, -(-D // lanes().lanes) * lanes().lanes
    if size == (C, D):
        return rows_CD.contiguous()
    whole = rows_CD.new_empty(size)
    whole[:C, :D] = rows_CD
    whole[:C, D:] = 0
    whole[C:] = 0
    return whole
