"""Kernels in Triton for GPUs. Triton is imported by the modules of this folder only, and these only where they are used."""

MAX_NEAREST = 64
"""Classes that a pixel can hold in registers while it searches."""
