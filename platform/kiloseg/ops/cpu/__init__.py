"""This package holds C kernels for the loss, for prediction, for the search for nearest classes and for depthwise convolutions.

`loss.c` and `cells.c` compute the loss of a whole batch, forward and backward: the first takes scores at pixels, the second at
feature cells. `nearest.c` finds the classes nearest to given vectors. `cells_best.c` finds the best one or two classes of every
pixel from scores at feature cells, and `cells_nearest.c` the K nearest that the loss compares a pixel with. Scores stay in the
registers and caches of a core. `depthwise.c` computes a gradient of depthwise convolutions. All kernels need tensors that hold
data, in float32 (`depthwise.c` also takes bfloat16). Their results are tested against torch's own operations, which take over if
there is no compiler.
"""

from kiloseg.ops.cpu.batch import Batch
from kiloseg.ops.cpu.cells import PADDING, Cells, CellsSearch, Division, divide, panels
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
    "Batch",
    "Cells",
    "CellsSearch",
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
