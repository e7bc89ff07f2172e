"""Kernels in C for the loss, for prediction and for the search for nearest classes on a CPU.

`loss.c` and `cells.c` compute the loss of a whole batch, forward and backward: the one takes scores at pixels, the other at
feature cells. `nearest.c` searches the classes nearest to given vectors, `cells_best.c` the best one or two of every pixel by
scores at feature cells. Scores stay in registers and in the caches of a core. All take tensors that exist, in float32; what they
compute is tested against torch's own operations, which take over where there is no compiler.
"""

from kiloseg.ops.cpu.cells import PADDING, Cells, Division, divide, panels
from kiloseg.ops.cpu.compiler import library
from kiloseg.ops.cpu.tensors import (
    MAX_DIM,
    MAX_NEAREST,
    CellsSizes,
    Lanes,
    cells_sizes,
    holds_data,
    lanes,
    pointer,
    whole_rows,
)

__all__ = [
    "MAX_DIM",
    "MAX_NEAREST",
    "PADDING",
    "Cells",
    "CellsSizes",
    "Division",
    "Lanes",
    "cells_sizes",
    "divide",
    "holds_data",
    "lanes",
    "library",
    "panels",
    "pointer",
    "whole_rows",
]
