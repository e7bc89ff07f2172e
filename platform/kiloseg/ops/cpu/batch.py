"""Holds the arguments that both kernels of the loss share: `BATCH` of batch.h.

Shapes: B batch, D embedding, h w feature cells, H W pixels.
"""

from __future__ import annotations

import ctypes

_SIZES = ("B", "D", "h", "w", "H", "W", "width")
_OPTIONS = ("threads", "cosine", "ignore", "wants_grad", "needs_top")
_STRIDES = ("image_stride", "dim_stride", "row_stride", "column_stride")


class Batch(ctypes.Structure):
    """Mirrors `BATCH` of ops/cpu/batch.h; a kernel's own arguments follow."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_SIZES, *_OPTIONS, *_STRIDES)),
        *((name, ctypes.c_float) for name in ("tau", "weight")),
        *((name, ctypes.c_void_p) for name in ("pixels", "labels", "grad_pixels", "result")),
    )
