"""This package holds Triton kernels for GPUs. Only its modules import Triton, and they are imported only where they are used."""

MAX_NEAREST = 64
"""The most classes that a pixel can hold in registers while it searches."""
