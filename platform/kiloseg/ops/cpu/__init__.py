"""Kernels in C for the loss and the search for nearest classes on a CPU.

`loss.c` is the whole loss of a batch, forward and backward; `nearest.c` the search. Scores stay in registers and in the
caches that are a core's own. Both take tensors that exist, in float32; what they compute is tested against torch's own
operations, which take over where there is no compiler.
"""

from kiloseg.ops.cpu.compiler import library
from kiloseg.ops.cpu.tensors import MAX_DIM, MAX_NEAREST, Lanes, holds_data, lanes, pointer, whole_rows

__all__ = ["MAX_DIM", "MAX_NEAREST", "Lanes", "holds_data", "lanes", "library", "pointer", "whole_rows"]
